/*
 * A DHCPv6 client for the test guest, whose busybox has none: asks for an address, then renews it,
 * and prints what it is told. No libc, see init.c.
 *
 *   dhcp6 CARD
 */
#include <asm/unistd.h>
#include <linux/in6.h>
#include <linux/socket.h>

#define AF_INET6 10
#define SOCK_DGRAM 2
#define SOL_SOCKET 1
#define SO_RCVTIMEO_OLD 20
#define SIOCGIFINDEX 0x8933

enum { SOLICIT = 1, ADVERTISE, REQUEST, RENEW = 5, REPLY = 7 };
enum { CLIENT_ID = 1, SERVER_ID, IA_NA, IA_ADDRESS = 5, DNS = 23, DOMAINS };

typedef unsigned long word;
typedef unsigned char byte;

/* GCC makes calls of these two by itself. */
void *memcpy(void *to, const void *from, word len)
{
	for (word i = 0; i < len; i++)
		((byte *)to)[i] = ((const byte *)from)[i];
	return to;
}

void *memset(void *to, int value, word len)
{
	for (word i = 0; i < len; i++)
		((byte *)to)[i] = (byte)value;
	return to;
}

static long call(long nr, word a, word b, word c, word d, word e, word f)
{
	register word r10 __asm__("r10") = d;
	register word r8 __asm__("r8") = e;
	register word r9 __asm__("r9") = f;
	long ret;

	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return ret;
}

static void say(const char *text, word len)
{
	call(__NR_write, 1, (word)text, len, 0, 0, 0);
}

static int failed(const char *what)
{
	word len = 0;

	while (what[len])
		len++;
	say("RESULT dhcp6.error=", 19);
	say(what, len);
	say("\n", 1);
	return 1;
}

/* "RESULT KEY=ADDRESS", the address with all its digits. */
static void say_address(const char *key, const byte *address)
{
	char line[80], *at = line;

	for (const char *c = "RESULT "; *c;)
		*at++ = *c++;
	while (*key)
		*at++ = *key++;
	for (int i = 0; i < 16; i++) {
		if (i && i % 2 == 0)
			*at++ = ':';
		*at++ = "0123456789abcdef"[address[i] >> 4];
		*at++ = "0123456789abcdef"[address[i] & 15];
	}
	*at++ = '\n';
	say(line, at - line);
}

/* The option `code` in [from, end); sets its length. */
static const byte *option(const byte *from, const byte *end, int code, word *len)
{
	while (end - from >= 4) {
		word size = (word)from[2] << 8 | from[3];
		if (size > (word)(end - from) - 4)
			return 0;
		if ((from[0] << 8 | from[1]) == code) {
			*len = size;
			return from + 4;
		}
		from += 4 + size;
	}
	return 0;
}

static byte *put(byte *to, int code, const byte *data, word len)
{
	*to++ = (byte)(code >> 8), *to++ = (byte)code;
	*to++ = (byte)(len >> 8), *to++ = (byte)len;
	memcpy(to, data, len);
	return to + len;
}

static byte answer[1500], server[130];
static word server_len;

/* Sends a message of this kind and waits for an answer of that one; its length, or 0. */
static word ask(int fd, unsigned int card, int kind, int wanted)
{
	static const byte client[] = { 0, 3, 0, 1, 2, 0, 0, 0, 0, 9 };
	static const byte association[12] = { 0, 0, 0, 7 };
	struct sockaddr_in6 servers = { .sin6_family = AF_INET6, .sin6_port = 0x2302 };
	byte message[300] = { (byte)kind, 0x12, 0x34, (byte)kind }, *at = message + 4;

	servers.sin6_addr.s6_addr[0] = 0xff, servers.sin6_addr.s6_addr[1] = 2;
	servers.sin6_addr.s6_addr[13] = 1, servers.sin6_addr.s6_addr[15] = 2;
	servers.sin6_scope_id = card;
	at = put(at, CLIENT_ID, client, sizeof(client));
	if (server_len)
		at = put(at, SERVER_ID, server, server_len);
	at = put(at, IA_NA, association, sizeof(association));
	for (int tries = 0; tries < 10; tries++) {
		/* Fails as long as the card's own address is being checked for duplicates. */
		call(__NR_sendto, fd, (word)message, at - message, 0, (word)&servers, sizeof(servers));
		long len = call(__NR_read, fd, (word)answer, sizeof(answer), 0, 0, 0);
		if (len > 4 && answer[0] == wanted && answer[1] == 0x12 && answer[3] == kind)
			return (word)len;
	}
	return 0;
}

/* The leased address in the answer. */
static const byte *leased(word answer_len)
{
	word len;
	const byte *association = option(answer + 4, answer + answer_len, IA_NA, &len);

	if (!association || len < 12)
		return 0;
	const byte *address = option(association + 12, association + len, IA_ADDRESS, &len);
	return address && len >= 24 ? address : 0;
}

static int run(const char *card)
{
	struct sockaddr_in6 self = { .sin6_family = AF_INET6, .sin6_port = 0x2202 };
	struct { char name[16]; int index; char rest[20]; } request = { 0 };
	long timeout[2] = { 2, 0 };
	int fd = (int)call(__NR_socket, AF_INET6, SOCK_DGRAM, 0, 0, 0, 0);
	word len, size;
	const byte *found;

	for (int i = 0; i < 15 && card[i]; i++)
		request.name[i] = card[i];
	if (fd < 0 || call(__NR_ioctl, fd, SIOCGIFINDEX, (word)&request, 0, 0, 0) < 0)
		return failed("card");
	call(__NR_setsockopt, fd, SOL_SOCKET, SO_RCVTIMEO_OLD, (word)timeout, sizeof(timeout), 0);
	if (call(__NR_bind, fd, (word)&self, sizeof(self), 0, 0, 0) < 0)
		return failed("bind");

	len = ask(fd, (unsigned int)request.index, SOLICIT, ADVERTISE);
	found = len ? option(answer + 4, answer + len, SERVER_ID, &size) : 0;
	if (!found || size > sizeof(server))
		return failed("advertise");
	memcpy(server, found, size);
	server_len = size;
	len = ask(fd, (unsigned int)request.index, REQUEST, REPLY);
	found = len ? leased(len) : 0;
	if (!found)
		return failed("reply");
	say_address("dhcp6.ip=", found);
	found = option(answer + 4, answer + len, DNS, &size);
	if (found && size >= 16)
		say_address("dhcp6.dns=", found);
	len = ask(fd, (unsigned int)request.index, RENEW, REPLY);
	found = len ? leased(len) : 0;
	if (!found)
		return failed("renew");
	say_address("dhcp6.renewed=", found);
	return 0;
}

__attribute__((used, noreturn)) static void start(word *stack)
{
	int status = stack[0] == 2 ? run((const char *)stack[2]) : failed("usage");

	for (;;)
		call(__NR_exit_group, status, 0, 0, 0, 0, 0);
}

__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall start\n");
