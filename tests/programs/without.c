/* without CALL… -- PROGRAM ARGUMENTS…
 *
 * Runs PROGRAM, and what it starts, in a world in which each CALL fails as it does at the
 * limit of one user that others have used up:
 *
 *   inotify    inotify_init1 answers EMFILE (fs.inotify.max_user_instances)
 *   watches    inotify_add_watch answers ENOSPC (fs.inotify.max_user_watches)
 *   dnotify    fcntl(F_NOTIFY) answers ENOMEM
 *
 * The limits themselves are the whole machine's, and not a test's to lower.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef F_NOTIFY
#define F_NOTIFY 1026
#endif

static struct sock_filter code[64];
static unsigned short length;

static void put(unsigned short what, unsigned char yes, unsigned char no, unsigned int k)
{
	code[length++] = (struct sock_filter)BPF_JUMP(what, k, yes, no);
}

static void number(void)
{
	put(BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(struct seccomp_data, nr));
}

static void fails(unsigned int call, unsigned int with)
{
	number();
	put(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, call);
	put(BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ERRNO | with);
}

int main(int argc, char **argv)
{
	int at = 1;
	for (; at < argc && strcmp(argv[at], "--"); at++) {
		if (!strcmp(argv[at], "inotify")) {
			fails(SYS_inotify_init1, EMFILE);
		} else if (!strcmp(argv[at], "watches")) {
			fails(SYS_inotify_add_watch, ENOSPC);
		} else if (!strcmp(argv[at], "dnotify")) {
			number();
			put(BPF_JMP | BPF_JEQ | BPF_K, 0, 3, SYS_fcntl);
			put(BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(struct seccomp_data, args[1]));
			put(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, F_NOTIFY);
			put(BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ERRNO | ENOMEM);
		} else {
			fprintf(stderr, "without: what is %s?\n", argv[at]);
			return 2;
		}
	}
	if (at + 1 >= argc) {
		fprintf(stderr, "without: no program\n");
		return 2;
	}
	put(BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW);
	struct sock_fprog program = { .len = length, .filter = code };
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) {
		perror("without: seccomp");
		return 2;
	}
	execv(argv[at + 1], argv + at + 1);
	perror(argv[at + 1]);
	return 127;
}
