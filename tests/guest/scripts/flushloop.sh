# Record n (4 KiB of its number) goes to block n - 1 of /dev/vda; `FLUSHED n`
# appears once the flush has returned. For pulling the plug at any moment.

guest flushloop "/dev/${p_disk:-vda}"
