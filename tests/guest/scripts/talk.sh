# talk: says something again and again, for ever, from user space.
while :; do
	echo TALK
done
