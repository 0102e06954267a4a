# One line a second from each processor, for ever: shows pause and resume.

for cpu in /sys/devices/system/cpu/cpu[0-9]*; do
	guest ticker "${cpu##*/cpu}" &
done
wait
