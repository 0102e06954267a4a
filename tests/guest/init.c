/*
 * /init of the test guest, and the few tools that busybox lacks or forks for.
 *
 * Guest kernel code may be interpreted (about 100 ms per fork and exec), so what
 * every boot needs is done here with bare system calls. No libc (bare.h): start-up
 * is a handful of instructions and no CPUID bit can lead it astray.
 *
 *   /init                 mount the kernel's file systems, exec busybox sh /init.sh
 *   guest down off|reboot drain the console, then end the machine at once
 *   guest flushloop DEV   numbered 4 KiB records, one flush each, until killed
 *   guest ticker CPU      pin to CPU, one line each second, until killed
 *   guest button EVENT    until the power key of this input device goes down
 *   guest send IP PORT N  N bytes of the pattern over TCP
 *   guest receive PORT N  N bytes over TCP (all bytes if N is 0): count and SHA-256
 *   guest echo PORT       tell every client that asks, TCP or UDP, what address it has, for ever
 *   guest ask tcp|udp IP PORT KEY [N]  ask such a server, with N bytes that no router may split
 *   guest vsock PORT      sends back what the host sends, on a connection to the host, then on all from it
 *   guest digest DEV N [KEY]  SHA-256 of the first N MiB, by direct I/O
 */
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/input-event-codes.h>
#include <linux/reboot.h>
#include <linux/socket.h>
#include <linux/time.h>

#include "bare.h"

#define O_RDONLY 0
#define O_RDWR 2
#define O_DIRECT 040000
#define MS_NOSUID 2
#define TCSBRK 0x5409
#define AF_INET 2
#define AF_VSOCK 40
#define SOCK_STREAM 1
#define SO_REUSEADDR 2
#define SO_SNDTIMEO 21
#define SOL_IP 0
#define IP_MTU_DISCOVER 10
#define SOL_IPV6 41
#define IPV6_MTU_DISCOVER 23
#define PMTUDISC_DO 2
#define POLLIN 1
#define SHUT_WR 1

static int down(const char *how)
{
	word cmd = same(how, "reboot") ? LINUX_REBOOT_CMD_RESTART : LINUX_REBOOT_CMD_POWER_OFF;

	call(__NR_sync, 0, 0, 0);
	/* The UART empties its buffer by interrupt; a reset would cut off the last lines. */
	call(__NR_ioctl, 1, TCSBRK, 1);
	long err = call(__NR_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, cmd);
	return failed("reboot", err);
}

static unsigned char chunk[1 << 20] __attribute__((aligned(4096)));

static int flushloop(const char *path)
{
	static char record[4096] __attribute__((aligned(4096)));
	long fd = call(__NR_open, path, O_RDWR, 0), err;
	char line[32];

	if (fd < 0)
		return failed("open", fd);
	for (word n = 1;; n++) {
		/* The whole record repeats its number, so a torn write shows. */
		for (char *at = record; at < record + sizeof(record); at += 16) {
			digits(at, n, 15);
			at[15] = '\n';
		}
		err = call6(__NR_pwrite64, (word)fd, (word)record, sizeof(record),
			    (n - 1) * sizeof(record), 0, 0);
		if (err != sizeof(record))
			return failed("write", err);
		err = call(__NR_fdatasync, fd, 0, 0);
		if (err < 0)
			return failed("flush", err);
		char *at = digits(text(line, "FLUSHED "), n, 1);
		*at++ = '\n';
		call(__NR_write, 1, line, at - line);
	}
}

static int ticker(const char *cpu)
{
	word mask[16] = { 0 }, n = number(cpu);
	struct timespec now, second = { 1, 0 };
	char line[64];

	mask[n / 64 % 16] = 1UL << (n % 64);
	long err = call(__NR_sched_setaffinity, 0, sizeof(mask), mask);
	if (err < 0)
		return failed("affinity", err);
	for (word i = 1;; i++) {
		call(__NR_clock_gettime, CLOCK_MONOTONIC, &now, 0);
		char *at = digits(text(line, "TICK cpu="), n, 1);
		at = digits(text(at, " n="), i, 1);
		at = digits(text(at, " uptime="), (word)now.tv_sec, 1);
		at = digits(text(at, "."), (word)now.tv_nsec / 10000000, 2);
		*at++ = '\n';
		call(__NR_write, 1, line, at - line);
		call(__NR_nanosleep, &second, 0, 0);
	}
}

/* The layout that evdev hands out on x86-64. */
struct event {
	long time[2];
	unsigned short type, code;
	int value;
};

static int button(const char *path)
{
	struct event event;
	long fd = call(__NR_open, path, O_RDONLY, 0), err;

	if (fd < 0)
		return failed("open", fd);
	/* A press before this is told to nobody. */
	say("WAITING\n");
	do {
		err = call(__NR_read, fd, &event, sizeof(event));
		if (err != sizeof(event))
			return failed("read", err);
	} while (event.type != EV_KEY || event.code != KEY_POWER || event.value != 1);
	return 0;
}

/* SHA-256 (FIPS 180-4). User code runs natively; a pipe to sha256sum does not. */
struct sha {
	unsigned int state[8];
	word bytes;
	unsigned char block[64];
};

static unsigned int round_key[64];

/* The first 32 bits of the fraction of the `root`-th root (2 or 3) of a prime. */
static unsigned int fraction(word prime, int root)
{
	/* Largest x with x^root <= prime * 2^(32 * root); only its low half matters. */
	unsigned __int128 wanted = (unsigned __int128)prime << (root == 2 ? 64 : 96), power;
	word x = 0;

	for (int bit = 35; bit >= 0; bit--) {
		word with = x | 1UL << bit;
		power = (unsigned __int128)with * with;
		if (root == 3)
			power *= with;
		if (power <= wanted)
			x = with;
	}
	return (unsigned int)x;
}

static void sha_start(struct sha *sha)
{
	int found = 0;

	for (word n = 2; found < 64; n++) {
		word factor = 2;
		while (n % factor)
			factor++;
		if (factor < n)
			continue;
		if (found < 8)
			sha->state[found] = fraction(n, 2);
		round_key[found++] = fraction(n, 3);
	}
	sha->bytes = 0;
}

static unsigned int turn(unsigned int x, int by)
{
	return x >> by | x << (32 - by);
}

static void sha_block(struct sha *sha, const unsigned char *in)
{
	unsigned int w[64], s[8];

	for (int i = 0; i < 16; i++, in += 4)
		w[i] = (unsigned int)in[0] << 24 | in[1] << 16 | in[2] << 8 | in[3];
	for (int i = 16; i < 64; i++) {
		unsigned int a = w[i - 15], b = w[i - 2];
		w[i] = w[i - 16] + (turn(a, 7) ^ turn(a, 18) ^ a >> 3) + w[i - 7] +
		       (turn(b, 17) ^ turn(b, 19) ^ b >> 10);
	}
	for (int i = 0; i < 8; i++)
		s[i] = sha->state[i];
	for (int i = 0; i < 64; i++) {
		unsigned int e = s[4], a = s[0];
		unsigned int one = s[7] + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) +
				   ((e & s[5]) ^ (~e & s[6])) + round_key[i] + w[i];
		unsigned int two = (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) +
				   ((a & s[1]) ^ (a & s[2]) ^ (s[1] & s[2]));
		for (int j = 7; j > 0; j--)
			s[j] = s[j - 1];
		s[4] += one;
		s[0] = one + two;
	}
	for (int i = 0; i < 8; i++)
		sha->state[i] += s[i];
}

static void sha_add(struct sha *sha, const unsigned char *in, word len)
{
	while (len) {
		word at = sha->bytes % 64;
		if (!at && len >= 64) {
			sha_block(sha, in);
			sha->bytes += 64, in += 64, len -= 64;
			continue;
		}
		sha->block[at] = *in++;
		sha->bytes++, len--;
		if (at == 63)
			sha_block(sha, sha->block);
	}
}

/* Appends the digest to `to` in hexadecimal. */
static char *sha_end(struct sha *sha, char *to)
{
	word bits = sha->bytes * 8;
	unsigned char last[8];

	sha_add(sha, (const unsigned char *)"\x80", 1);
	while (sha->bytes % 64 != 56)
		sha_add(sha, (const unsigned char *)"", 1);
	for (int i = 0; i < 8; i++)
		last[i] = (unsigned char)(bits >> (56 - 8 * i));
	sha_add(sha, last, 8);
	for (int i = 0; i < 64; i++)
		*to++ = "0123456789abcdef"[sha->state[i / 8] >> (28 - i % 8 * 4) & 15];
	return to;
}

static void print_digest(struct sha *sha, const char *key)
{
	char line[128], *at = text(text(line, "RESULT "), key);

	at = sha_end(sha, text(at, "sha256="));
	*at++ = '\n';
	call(__NR_write, 1, line, at - line);
}

/* Byte i of the pattern is (i + i / 251) mod 256: no power-of-two period. */
static void fill(unsigned char *to, word from, word len)
{
	for (word i = from; i < from + len; i++)
		*to++ = (unsigned char)(i + i / 251);
}


static unsigned short port_of(const char *s)
{
	word n = number(s);

	return (unsigned short)((n & 0xff) << 8 | (n >> 8 & 0xff));
}

static int send(const char *ip, const char *port, word total)
{
	struct sockaddr_in peer = { .sin_family = AF_INET, .sin_port = port_of(port) };
	unsigned char *octet = (unsigned char *)&peer.sin_addr;
	long fd = call(__NR_socket, AF_INET, SOCK_STREAM, 0), err;

	for (int i = 0; i < 4; i++) {
		octet[i] = (unsigned char)number(ip);
		while (*ip && *ip++ != '.')
			;
	}
	err = call(__NR_connect, fd, &peer, sizeof(peer));
	if (err < 0)
		return failed("connect", err);
	for (word done = 0; done < total; done += (word)err) {
		word len = total - done < sizeof(chunk) ? total - done : sizeof(chunk);
		fill(chunk, done, len);
		err = call(__NR_write, fd, chunk, len);
		if (err <= 0)
			return failed("send", err);
	}
	/* Power-off would cut off what is in flight: wait until the peer hangs up. */
	call(__NR_shutdown, fd, SHUT_WR, 0);
	while (call(__NR_read, fd, chunk, sizeof(chunk)) > 0)
		;
	return 0;
}

static int receive(const char *port, word total)
{
	struct sockaddr_in self = { .sin_family = AF_INET, .sin_port = port_of(port) };
	long fd = call(__NR_socket, AF_INET, SOCK_STREAM, 0), err;
	struct sha sha;
	char line[48], *at;
	int on = 1;

	call6(__NR_setsockopt, (word)fd, SOL_SOCKET, SO_REUSEADDR, (word)&on, sizeof(on), 0);
	err = call(__NR_bind, fd, &self, sizeof(self));
	if (err < 0)
		return failed("bind", err);
	call(__NR_listen, fd, 1, 0);
	say("LISTENING\n");
	fd = call(__NR_accept, fd, 0, 0);
	if (fd < 0)
		return failed("accept", fd);
	sha_start(&sha);
	while (!total || sha.bytes < total) {
		err = call(__NR_read, fd, chunk, sizeof(chunk));
		if (err < 0)
			return failed("receive", err);
		if (!err)
			break;
		sha_add(&sha, chunk, (word)err);
	}
	at = digits(text(line, "RESULT rx.bytes="), sha.bytes, 1);
	*at++ = '\n';
	call(__NR_write, 1, line, at - line);
	print_digest(&sha, "rx.");
	return 0;
}

/* Reads an IPv6 address, or an IPv4 address as a mapped one. */
static void address_of(const char *s, unsigned char *to)
{
	const char *at = s;
	int gap = -1, len = 0;
	unsigned char part[16] = { 0 };

	while (*at && *at != ':' && *at != '.')
		at++;
	for (int i = 0; i < 16; i++)
		to[i] = 0;
	if (*at == '.') {
		to[10] = to[11] = 0xff;
		for (int i = 12; i < 16; i++) {
			to[i] = (unsigned char)number(s);
			while (*s && *s++ != '.')
				;
		}
		return;
	}
	while (*s && len < 16) {
		unsigned int group = 0;

		if (*s == ':') {
			if (*++s == ':')
				gap = len, s++;
			continue;
		}
		for (; *s && *s != ':'; s++)
			group = group * 16 + (unsigned int)(*s <= '9' ? *s - '0' : (*s | 32) - 'a' + 10);
		part[len++] = (unsigned char)(group >> 8);
		part[len++] = (unsigned char)group;
	}
	for (int i = 0; i < len; i++)
		to[gap < 0 || i < gap ? i : 16 - len + i] = part[i];
}

static word port_of_peer(const struct sockaddr_in6 *peer)
{
	unsigned short port = peer->sin6_port;

	return (word)(port >> 8 | (port & 0xff) << 8);
}

/* Appends "ADDRESS PORT", a mapped address as IPv4. */
static char *peer_text(char *to, const struct sockaddr_in6 *peer)
{
	const unsigned char *byte = peer->sin6_addr.s6_addr;

	if (byte[10] == 0xff && byte[11] == 0xff && !byte[0]) {
		for (int i = 12; i < 16; i++) {
			to = digits(to, byte[i], 1);
			*to++ = i < 15 ? '.' : ' ';
		}
	} else {
		to = address6_text(to, byte);
		*to++ = ' ';
	}
	return digits(to, port_of_peer(peer), 1);
}

/* A socket for both families whose packets no router may split. */
static long whole_socket(int kind)
{
	long fd = call(__NR_socket, AF_INET6, kind, 0);
	int whole = PMTUDISC_DO, on = 1;
	struct timespec patience = { 20, 0 };

	call6(__NR_setsockopt, (word)fd, SOL_IP, IP_MTU_DISCOVER, (word)&whole, sizeof(whole), 0);
	call6(__NR_setsockopt, (word)fd, SOL_IPV6, IPV6_MTU_DISCOVER, (word)&whole, sizeof(whole), 0);
	call6(__NR_setsockopt, (word)fd, SOL_SOCKET, SO_REUSEADDR, (word)&on, sizeof(on), 0);
	call6(__NR_setsockopt, (word)fd, SOL_SOCKET, SO_RCVTIMEO, (word)&patience, sizeof(patience), 0);
	call6(__NR_setsockopt, (word)fd, SOL_SOCKET, SO_SNDTIMEO, (word)&patience, sizeof(patience), 0);
	return fd;
}

static int echo(const char *port)
{
	struct sockaddr_in6 self = { .sin6_family = AF_INET6, .sin6_port = port_of(port) }, peer;
	struct {
		int fd;
		short events, revents;
	} ready[2];
	char *answer = (char *)chunk;

	for (int i = 0; i < 2; i++) {
		long fd = whole_socket(i ? SOCK_DGRAM : SOCK_STREAM);
		long err = call(__NR_bind, fd, &self, sizeof(self));

		if (err < 0)
			return failed("bind", err);
		ready[i].fd = (int)fd;
		ready[i].events = POLLIN;
	}
	call(__NR_listen, ready[0].fd, 8, 0);
	say("ECHOING\n");
	for (;;) {
		unsigned int size = sizeof(peer);
		long fd, len;

		call(__NR_poll, ready, 2, -1);
		if (ready[0].revents) {
			fd = call(__NR_accept, ready[0].fd, &peer, &size);
			/* A question left unread would make the kernel reset the connection. */
			call(__NR_read, fd, chunk, sizeof(chunk));
			len = peer_text(answer, &peer) - answer;
			answer[len] = '\n';
			call(__NR_write, fd, answer, len + 1);
			call(__NR_close, fd, 0, 0);
		}
		if (ready[1].revents) {
			len = call6(__NR_recvfrom, (word)ready[1].fd, (word)answer, 65536, 0,
				    (word)&peer, (word)&size);
			*peer_text(answer, &peer) = '\n';
			/* As long as the question, or as the answer needs. */
			call6(__NR_sendto, (word)ready[1].fd, (word)answer,
			      (word)(len < 64 ? 64 : len), 0, (word)&peer, size);
		}
	}
}

static int ask(const char *protocol, const char *ip, const char *port, const char *key, word size)
{
	struct sockaddr_in6 peer = { .sin6_family = AF_INET6, .sin6_port = port_of(port) };
	struct sockaddr_in6 self = { 0 };
	unsigned int self_size = sizeof(self);
	long fd = whole_socket(same(protocol, "udp") ? SOCK_DGRAM : SOCK_STREAM), err, len = 0;
	char line[160], *at = text(text(text(line, "RESULT "), key), "=");

	address_of(ip, peer.sin6_addr.s6_addr);
	err = call(__NR_connect, fd, &peer, sizeof(peer));
	if (err >= 0)
		err = call(__NR_write, fd, chunk, same(protocol, "udp") ? size : 1);
	if (err >= 0)
		err = len = call(__NR_read, fd, chunk, sizeof(chunk));
	if (err < 0) {
		at = digits(text(at, "errno "), (word)-err, 1);
	} else {
		for (long i = 0; i < len && i < 64 && chunk[i] != '\n'; i++)
			*at++ = (char)chunk[i];
		if (size)
			at = digits(text(at, " "), (word)len, 1);
		call(__NR_getsockname, fd, &self, &self_size);
		at = digits(text(at, " from "), port_of_peer(&self), 1);
	}
	*at++ = '\n';
	call(__NR_write, 1, line, at - line);
	return err < 0;
}

/* vsock(7); its header wants libc's. */
struct vsock_address {
	unsigned short family, reserved;
	unsigned int port, cid, flags;
};

#define CID_ANY -1U
#define CID_HOST 2

/* Until the other side has no more to say. */
static void send_back(long fd)
{
	long len;

	while ((len = call(__NR_read, fd, chunk, sizeof(chunk))) > 0)
		for (long at = 0, done; at < len; at += done)
			if ((done = call(__NR_write, fd, chunk + at, len - at)) <= 0)
				return;
	call(__NR_close, fd, 0, 0);
}

static int vsock(const char *port)
{
	unsigned int at = (unsigned int)number(port);
	struct vsock_address host = { .family = AF_VSOCK, .port = at, .cid = CID_HOST };
	struct vsock_address self = { .family = AF_VSOCK, .port = at, .cid = CID_ANY };
	long fd = call(__NR_socket, AF_VSOCK, SOCK_STREAM, 0), err;

	err = call(__NR_connect, fd, &host, sizeof(host));
	if (err < 0)
		return failed("connect", err);
	send_back(fd);
	fd = call(__NR_socket, AF_VSOCK, SOCK_STREAM, 0);
	err = call(__NR_bind, fd, &self, sizeof(self));
	if (err < 0)
		return failed("bind", err);
	call(__NR_listen, fd, 1, 0);
	say("LISTENING\n");
	for (;;) {
		err = call(__NR_accept, fd, 0, 0);
		if (err < 0)
			return failed("accept", err);
		send_back(err);
	}
}

static int digest(const char *path, word mib, const char *key)
{
	struct sha sha;
	long fd = call(__NR_open, path, O_RDONLY | O_DIRECT, 0), err;

	if (fd < 0)
		return failed("open", fd);
	sha_start(&sha);
	for (; mib; mib--) {
		err = call(__NR_read, fd, chunk, sizeof(chunk));
		if (err != sizeof(chunk))
			return failed("read", err);
		sha_add(&sha, chunk, sizeof(chunk));
	}
	print_digest(&sha, key);
	return 0;
}

static int tool(word argc, char **argv)
{
	if (argc == 3 && same(argv[1], "down"))
		return down(argv[2]);
	if (argc == 3 && same(argv[1], "flushloop"))
		return flushloop(argv[2]);
	if (argc == 3 && same(argv[1], "ticker"))
		return ticker(argv[2]);
	if (argc == 3 && same(argv[1], "button"))
		return button(argv[2]);
	if (argc == 5 && same(argv[1], "send"))
		return send(argv[2], argv[3], number(argv[4]));
	if (argc == 4 && same(argv[1], "receive"))
		return receive(argv[2], number(argv[3]));
	if (argc == 3 && same(argv[1], "echo"))
		return echo(argv[2]);
	if ((argc == 6 || argc == 7) && same(argv[1], "ask"))
		return ask(argv[2], argv[3], argv[4], argv[5], argc == 7 ? number(argv[6]) : 0);
	if (argc == 3 && same(argv[1], "vsock"))
		return vsock(argv[2]);
	if ((argc == 4 || argc == 5) && same(argv[1], "digest"))
		return digest(argv[2], number(argv[3]), argc == 5 ? argv[4] : "");
	return failed("usage", 0);
}

/*
 * Debian's busybox is a static glibc program. glibc picks AVX code by CPUID,
 * but with `noxsave` the kernel saves only SSE registers when it switches
 * tasks. Saving one would corrupt the other, so those choices are closed here.
 */
static char *environment[] = {
	"GLIBC_TUNABLES=glibc.cpu.hwcaps="
	"-AVX,-AVX2,-AVX512F,-AVX512VL,-AVX512BW,-FMA,-FMA4,-XSAVE,-XSAVEC,"
	"-AVX_Fast_Unaligned_Load",
	"PATH=/bin",
	"HOME=/",
	"TERM=vt100",
	"PS1=guest# ",
	0,
};

static int first(void)
{
	char *shell[] = { "sh", "/init.sh", 0 };

	say("GUEST-INIT-READY\n");
	call6(__NR_mount, (word) "proc", (word) "/proc", (word) "proc", MS_NOSUID, 0, 0);
	call6(__NR_mount, (word) "sysfs", (word) "/sys", (word) "sysfs", MS_NOSUID, 0, 0);
	call6(__NR_mount, (word) "dev", (word) "/dev", (word) "devtmpfs", MS_NOSUID, 0, 0);
	failed("exec", call(__NR_execve, "/bin/busybox", shell, environment));
	return down("off");
}

static int run(word argc, char **argv)
{
	return same(argv[0], "/init") ? first() : tool(argc, argv);
}
