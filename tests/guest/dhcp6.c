/*
 * A DHCPv6 client for the test guest, whose busybox has none: asks for an address, then renews it,
 * and prints what it is told. No libc, see bare.h.
 *
 *   dhcp6 CARD
 */
#include <linux/in6.h>
#include <linux/socket.h>

#include "bare.h"

enum { SOLICIT = 1, ADVERTISE, REQUEST, RENEW = 5, REPLY = 7 };
enum { CLIENT_ID = 1, SERVER_ID, IA_NA, IA_ADDRESS = 5, DNS = 23, DOMAINS };

typedef unsigned char byte;

static void say_address(const char *key, const byte *address)
{
	char line[80], *at = text(text(line, "RESULT dhcp6."), key);

	at = address6_text(text(at, "="), address);
	*at++ = '\n';
	call(__NR_write, 1, line, at - line);
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
static word ask(long fd, unsigned int card, int kind, int wanted)
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
		call6(__NR_sendto, (word)fd, (word)message, (word)(at - message), 0, (word)&servers,
		      sizeof(servers));
		long len = call(__NR_read, fd, answer, sizeof(answer));
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

static int lease(const char *card)
{
	struct sockaddr_in6 self = { .sin6_family = AF_INET6, .sin6_port = 0x2202 };
	long patience[2] = { 2, 0 };
	long fd = call(__NR_socket, AF_INET6, SOCK_DGRAM, 0), index = card_index(fd, card), err;
	word len, size;
	const byte *found;

	if (index < 0)
		return failed("card", index);
	call6(__NR_setsockopt, (word)fd, SOL_SOCKET, SO_RCVTIMEO, (word)patience, sizeof(patience), 0);
	err = call(__NR_bind, fd, &self, sizeof(self));
	if (err < 0)
		return failed("bind", err);

	len = ask(fd, (unsigned int)index, SOLICIT, ADVERTISE);
	found = len ? option(answer + 4, answer + len, SERVER_ID, &size) : 0;
	if (!found || size > sizeof(server))
		return failed("advertise", 0);
	memcpy(server, found, size);
	server_len = size;
	len = ask(fd, (unsigned int)index, REQUEST, REPLY);
	found = len ? leased(len) : 0;
	if (!found)
		return failed("reply", 0);
	say_address("ip", found);
	found = option(answer + 4, answer + len, DNS, &size);
	if (found && size >= 16)
		say_address("dns", found);
	len = ask(fd, (unsigned int)index, RENEW, REPLY);
	found = len ? leased(len) : 0;
	if (!found)
		return failed("renew", 0);
	say_address("renewed", found);
	return 0;
}

static int run(word argc, char **argv)
{
	return argc == 2 ? lease(argv[1]) : failed("usage", 0);
}
