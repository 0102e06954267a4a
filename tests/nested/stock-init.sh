#!/bin/sh
# First process of a stock kernel: loads the drivers that the test guest's own kernel has built in,
# then the test guest's init.
while read -r module; do
	/bin/busybox insmod "/modules/$module" || echo "RESULT error=no $module"
done < /modules/order
exec /init
