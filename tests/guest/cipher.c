/*
 * AES in counter mode by the kernel's own code, which takes AVX, VAES or AES-NI where the processor is
 * said to have them: 64 KiB are enciphered, beginning with the test vector of NIST SP 800-38A, F.5.1,
 * and deciphered again. No libc, see bare.h.
 *
 *   cipher
 */
#include <linux/if_alg.h>
#include <linux/socket.h>
#include <linux/uio.h>

#include "bare.h"

#define AF_ALG 38
#define SOCK_SEQPACKET 5
#define SOL_ALG 279
/* What a socket holds at once, of pages that are the caller's. */
#define LENGTH 65536
#define VECTOR 64

typedef unsigned char byte;

static const byte key[16] = {
	0x2b, 0x7e, 0x15, 0x16, 0x28, 0xae, 0xd2, 0xa6, 0xab, 0xf7, 0x15, 0x88, 0x09, 0xcf, 0x4f, 0x3c,
};
static const byte plain[VECTOR] = {
	0x6b, 0xc1, 0xbe, 0xe2, 0x2e, 0x40, 0x9f, 0x96, 0xe9, 0x3d, 0x7e, 0x11, 0x73, 0x93, 0x17, 0x2a,
	0xae, 0x2d, 0x8a, 0x57, 0x1e, 0x03, 0xac, 0x9c, 0x9e, 0xb7, 0x6f, 0xac, 0x45, 0xaf, 0x8e, 0x51,
	0x30, 0xc8, 0x1c, 0x46, 0xa3, 0x5c, 0xe4, 0x11, 0xe5, 0xfb, 0xc1, 0x19, 0x1a, 0x0a, 0x52, 0xef,
	0xf6, 0x9f, 0x24, 0x45, 0xdf, 0x4f, 0x9b, 0x17, 0xad, 0x2b, 0x41, 0x7b, 0xe6, 0x6c, 0x37, 0x10,
};
static const byte secret[VECTOR] = {
	0x87, 0x4d, 0x61, 0x91, 0xb6, 0x20, 0xe3, 0x26, 0x1b, 0xef, 0x68, 0x64, 0x99, 0x0d, 0xb6, 0xce,
	0x98, 0x06, 0xf6, 0x6b, 0x79, 0x70, 0xfd, 0xff, 0x86, 0x17, 0x18, 0x7b, 0xb9, 0xff, 0xfd, 0xff,
	0x5a, 0xe4, 0xdf, 0x3e, 0xdb, 0xd5, 0xd3, 0x5e, 0x5b, 0x4f, 0x09, 0x02, 0x0d, 0xb0, 0x3e, 0xab,
	0x1e, 0x03, 0x1d, 0xda, 0x2f, 0xbe, 0x03, 0xd1, 0x79, 0x21, 0x70, 0xa0, 0xf3, 0x00, 0x9c, 0xee,
};

static byte data[LENGTH] __attribute__((aligned(4096)));

/* A control message of SOL_ALG, as cmsg(3) lays it out. */
struct head {
	word length;
	int level, type;
};

/* Has the kernel encipher or decipher all of the text where it lies. */
static long turn(long fd, unsigned operation)
{
	struct {
		struct head head;
		unsigned operation, pad;
		struct head iv_head;
		unsigned iv_length;
		byte iv[16], iv_pad[4];
	} control = {
		{ sizeof(struct head) + 4, SOL_ALG, ALG_SET_OP }, operation, 0,
		{ sizeof(struct head) + 20, SOL_ALG, ALG_SET_IV }, 16,
		{ 0xf0, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7,
		  0xf8, 0xf9, 0xfa, 0xfb, 0xfc, 0xfd, 0xfe, 0xff }, { 0 },
	};
	struct iovec vector = { data, LENGTH };
	struct {
		void *name;
		unsigned name_length, pad;
		struct iovec *vector;
		word count;
		void *control;
		word control_length;
		word flags;
	} message = { 0, 0, 0, &vector, 1, &control, sizeof(control), 0 };
	long err = call(__NR_sendmsg, fd, &message, 0);

	if (err != LENGTH)
		return err < 0 ? err : -1;
	err = call(__NR_read, fd, data, LENGTH);
	return err == LENGTH ? 0 : err < 0 ? err : -1;
}

static int is(const byte *expected)
{
	byte differs = 0;

	for (word i = 0; i < VECTOR; i++)
		differs |= data[i] ^ expected[i];
	return !differs;
}

static int run(word argc, char **argv)
{
	struct sockaddr_alg address = { .salg_family = AF_ALG, .salg_type = "skcipher", .salg_name = "ctr(aes)" };
	long socket = call(__NR_socket, AF_ALG, SOCK_SEQPACKET, 0), fd, err;

	(void)argc, (void)argv;
	if (socket < 0)
		return failed("socket", socket);
	err = call(__NR_bind, socket, &address, sizeof(address));
	if (err < 0)
		return failed("bind", err);
	err = call6(__NR_setsockopt, (word)socket, SOL_ALG, ALG_SET_KEY, (word)key, sizeof(key), 0);
	if (err < 0)
		return failed("key", err);
	fd = call(__NR_accept, socket, 0, 0);
	if (fd < 0)
		return failed("accept", fd);
	memcpy(data, plain, VECTOR);
	err = turn(fd, ALG_OP_ENCRYPT);
	if (err < 0)
		return failed("encrypt", err);
	if (!is(secret))
		return failed("vector", 0);
	err = turn(fd, ALG_OP_DECRYPT);
	if (err < 0)
		return failed("decrypt", err);
	for (word i = VECTOR; i < LENGTH; i++)
		if (data[i])
			return failed("turned back", 0);
	if (!is(plain))
		return failed("turned back", 0);
	say("RESULT cipher=ok\n");
	return 0;
}
