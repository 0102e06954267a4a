# An interactive shell on the console; the power button powers off.

. /scripts/button.sh
find_button && guest button "$button" > /dev/null && exec guest down off &
setsid cttyhack sh
