# An interactive shell on the console; the power button powers off.

. /scripts/button.sh
(button_pressed && exec guest down off) &
setsid cttyhack sh
