/* Forks as many children as its argument says, says "ready", and sleeps with them for
 * ever. Static and tiny, so that twenty thousand of them fit on a small machine. */
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv) {
    long count = argc > 1 ? strtol(argv[1], NULL, 10) : 0;
    for (long i = 0; i < count; i++) {
        pid_t pid = fork();
        if (pid < 0) {
            (void)!write(1, "fork failed\n", 12);
            return 1;
        }
        if (pid == 0) {
            for (;;) pause();
        }
    }
    (void)!write(1, "ready\n", 6);
    for (;;) pause();
}
