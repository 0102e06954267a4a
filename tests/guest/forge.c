/*
 * What a guest may not send: frames under another MAC address than its card's, and the words of its
 * network's servers and routers; last, some that are fine. No libc, see bare.h.
 *
 *   forge CARD
 *
 * Each frame ends with "forged KIND".
 */
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/socket.h>

#include "bare.h"

#define AF_PACKET 17
#define SOCK_RAW 3
#define SIOCGIFHWADDR 0x8927
#define EXPERIMENTAL 0x88b5

typedef unsigned char byte;

static const byte foreign[6] = { 2, 0, 0, 0, 0, 0x66 };
static const byte everybody[6] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };

enum whose { OWN, FOREIGN };

struct kind {
	const char *name;
	unsigned short type;
	/* The frame's source. */
	enum whose source;
	/* The address inside, and where in the payload it is; nowhere if 0. */
	enum whose inside;
	byte at, len, payload[72];
};

#define IPV4(PROTOCOL) 0x45, 0, 0, 0, 0, 0, 0, 0, 64, PROTOCOL, 0, 0, \
	10, 244, 1, 7, 255, 255, 255, 255
#define IPV6 0x60, 0, 0, 0, 0, 0, 58, 255, \
	0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x66, \
	0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1
/* That 10.244.1.66 is at this card. */
#define ARP 0, 1, 8, 0, 6, 4, 0, 2, 0, 0, 0, 0, 0, 0, 10, 244, 1, 66, \
	0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 10, 244, 1, 66
#define ARP_SENDER 8
/* That fd00:10:244:1::66 is at this card. */
#define NEIGHBOUR IPV6, 136, 0, 0, 0, 0x20, 0, 0, 0, \
	0xfd, 0, 0, 0x10, 2, 0x44, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0x66, 2, 1
#define NEIGHBOUR_CARD 66

static const struct kind kinds[] = {
	{ "mac", EXPERIMENTAL, FOREIGN, OWN, 0, 4, { 1, 2, 3, 4 } },
	{ "ip", ETH_P_IP, FOREIGN, OWN, 0, 28, { IPV4(17), 0x1b, 0x58, 0x1b, 0x58, 0, 8 } },
	{ "arp", ETH_P_ARP, OWN, FOREIGN, ARP_SENDER, 28, { ARP } },
	{ "neighbour", ETH_P_IPV6, OWN, FOREIGN, NEIGHBOUR_CARD, 72, { NEIGHBOUR } },
	{ "offer", ETH_P_IP, OWN, OWN, 0, 28, { IPV4(17), 0, 67, 0, 68, 0, 8 } },
	{ "redirect", ETH_P_IP, OWN, OWN, 0, 28, { IPV4(1), 5, 1, 0, 0, 10, 244, 1, 7 } },
	{ "advertise", ETH_P_IPV6, OWN, OWN, 0, 56, { IPV6, 134, 0, 0, 0, 64, 0, 0, 30 } },
	{ "own arp", ETH_P_ARP, OWN, OWN, ARP_SENDER, 28, { ARP } },
	{ "own neighbour", ETH_P_IPV6, OWN, OWN, NEIGHBOUR_CARD, 72, { NEIGHBOUR } },
	{ "end", EXPERIMENTAL, OWN, OWN, 0, 4, { 1, 2, 3, 4 } },
};

/* Fills in the checksum of an IPv4 header, without which bridges may drop it. */
static void checksum(byte *header)
{
	unsigned int sum = 0;

	for (int i = 0; i < 20; i += 2)
		sum += (unsigned int)header[i] << 8 | header[i + 1];
	sum = ~(sum + (sum >> 16));
	header[10] = (byte)(sum >> 8), header[11] = (byte)sum;
}

/* Writes the frame; its end. */
static byte *frame(byte *to, const struct kind *kind, const byte *own)
{
	memcpy(to, everybody, 6);
	memcpy(to + 6, kind->source == OWN ? own : foreign, 6);
	to[12] = (byte)(kind->type >> 8), to[13] = (byte)kind->type;
	to += 14;
	memcpy(to, kind->payload, kind->len);
	if (kind->at)
		memcpy(to + kind->at, kind->inside == OWN ? own : foreign, 6);
	byte *end = (byte *)text(text((char *)to + kind->len, "forged "), kind->name);

	if (kind->type == ETH_P_IP) {
		to[3] = (byte)(end - to);
		checksum(to);
	}
	if (kind->type == ETH_P_IPV6)
		to[5] = (byte)(end - to - 40);
	return end;
}

static int forge(const char *card)
{
	static byte buffer[200];
	struct sockaddr_ll to = { .sll_family = AF_PACKET, .sll_halen = 6 };
	struct { char name[16]; unsigned short family; byte own[22]; } request = { 0 };
	long fd = call(__NR_socket, AF_PACKET, SOCK_RAW, 0), err = card_index(fd, card);

	if (err < 0)
		return failed("card", err);
	to.sll_ifindex = (int)err;
	text(request.name, card);
	err = call(__NR_ioctl, fd, SIOCGIFHWADDR, &request);
	if (err < 0)
		return failed("address", err);
	for (word i = 0; i < sizeof(kinds) / sizeof(*kinds); i++) {
		long len = frame(buffer, &kinds[i], request.own) - buffer;

		err = call6(__NR_sendto, (word)fd, (word)buffer, (word)len, 0, (word)&to, sizeof(to));
		if (err != len)
			return failed(kinds[i].name, err);
	}
	return 0;
}

static int run(word argc, char **argv)
{
	return argc == 2 && length(argv[1]) < 16 ? forge(argv[1]) : failed("usage", 0);
}
