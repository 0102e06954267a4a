# AES by the kernel's code, and which code of the kernel's that was.

cipher || fail "cipher"
found=
while read -r key _ value; do
	case $key:$value in
	"name:ctr(aes)") found=1 ;;
	name:*) found= ;;
	driver:*) [ -z "$found" ] || result "cipher.driver=$value" ;;
	esac
done < /proc/crypto
