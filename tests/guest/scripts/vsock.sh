# Sends back what the host sends by vsock: podvisor.port is the port on both sides.

guest vsock "$p_port" || fail "no vsock"
