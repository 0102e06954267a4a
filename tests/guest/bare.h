/*
 * What the test guest's programs have in place of a libc: system calls, words and numbers as text,
 * and the entry. The program defines `run`, whose result is its exit status.
 */
#ifndef BARE_H
#define BARE_H

#include <asm/unistd.h>

#define AF_INET6 10
#define SOCK_DGRAM 2
#define SOL_SOCKET 1
#define SO_RCVTIMEO 20
#define SIOCGIFINDEX 0x8933

typedef unsigned long word;

/* GCC makes calls of these two by itself. */
void *memcpy(void *to, const void *from, word len)
{
	for (word i = 0; i < len; i++)
		((unsigned char *)to)[i] = ((const unsigned char *)from)[i];
	return to;
}

void *memset(void *to, int value, word len)
{
	for (word i = 0; i < len; i++)
		((unsigned char *)to)[i] = (unsigned char)value;
	return to;
}

static inline long call6(long nr, word a, word b, word c, word d, word e, word f)
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

#define call(nr, a, b, c) call6(nr, (word)(a), (word)(b), (word)(c), 0, 0, 0)

static inline word length(const char *s)
{
	word n = 0;

	while (s[n])
		n++;
	return n;
}

static inline int same(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

static inline void say(const char *s)
{
	call(__NR_write, 1, s, length(s));
}

static inline word number(const char *s)
{
	word n = 0;

	while (*s >= '0' && *s <= '9')
		n = n * 10 + (word)(*s++ - '0');
	return n;
}

/* Writes n in decimal at `to`, padded with zeros to `width`; returns the end. */
static inline char *digits(char *to, word n, int width)
{
	char reversed[20];
	int len = 0;

	do
		reversed[len++] = (char)('0' + n % 10);
	while (n /= 10);
	while (len < width)
		reversed[len++] = '0';
	while (len)
		*to++ = reversed[--len];
	return to;
}

static inline char *text(char *to, const char *s)
{
	while (*s)
		*to++ = *s++;
	return to;
}

static inline int failed(const char *what, long err)
{
	char line[96], *at = text(line, "GUEST-TOOL-FAILED ");

	at = text(at, what);
	at = text(at, " errno=");
	at = digits(at, (word)-err, 1);
	at = text(at, "\n");
	call(__NR_write, 2, line, at - line);
	return 1;
}

/* The number of a network card, or an error. */
static inline long card_index(long socket, const char *card)
{
	struct {
		char name[16];
		int index;
		char rest[20];
	} request = { 0 };

	for (int i = 0; i < 15 && card[i]; i++)
		request.name[i] = card[i];
	long err = call(__NR_ioctl, socket, SIOCGIFINDEX, &request);
	return err < 0 ? err : request.index;
}

/* Appends an IPv6 address with all its digits. */
static inline char *address6_text(char *to, const unsigned char *address)
{
	for (int i = 0; i < 32; i++) {
		if (i && i % 4 == 0)
			*to++ = ':';
		*to++ = "0123456789abcdef"[address[i / 2] >> (i % 2 ? 0 : 4) & 15];
	}
	return to;
}

static int run(word argc, char **argv);

__attribute__((used, noreturn)) static void start(word *stack)
{
	int status = run(stack[0], (char **)(stack + 1));

	for (;;)
		call(__NR_exit_group, status, 0, 0);
}

__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall start\n");

#endif
