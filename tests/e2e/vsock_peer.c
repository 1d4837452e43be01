/*
 * A program for a container's side of a vsock: busybox knows none. Linked statically, so that it needs nothing of the container.
 *
 *   vsock-peer listen PORT     sends back what comes, one connection after the other
 *   vsock-peer connect PORT    standard input to the host's port, and what comes back to standard output
 *   vsock-peer socket          only makes a socket
 *
 * What the kernel refuses is said on standard error, and ends it with 1.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

static void must(const char *what, long result)
{
	if (result < 0) {
		fprintf(stderr, "%s: %s\n", what, strerror(errno));
		exit(1);
	}
}

/* Until there is no more. */
static void copy(int from, int to)
{
	static char buffer[65536];
	ssize_t count;

	while ((count = read(from, buffer, sizeof(buffer))) > 0) {
		ssize_t done = 0;

		while (done < count) {
			ssize_t more = write(to, buffer + done, count - done);

			must("write", more);
			done += more;
		}
	}
	must("read", count);
}

int main(int argc, char **argv)
{
	const char *act = argc > 1 ? argv[1] : "";
	struct sockaddr_vm address = { .svm_family = AF_VSOCK, .svm_port = argc > 2 ? atoi(argv[2]) : 0 };
	struct timeval patience = { .tv_sec = 60 };
	int vsock = socket(AF_VSOCK, SOCK_STREAM, 0);

	must("socket", vsock);
	if (!strcmp(act, "listen")) {
		address.svm_cid = VMADDR_CID_ANY;
		must("bind", bind(vsock, (struct sockaddr *)&address, sizeof(address)));
		must("listen", listen(vsock, 8));
		puts("listening");
		fflush(stdout);
		for (;;) {
			int client = accept(vsock, NULL, NULL);

			must("accept", client);
			copy(client, client);
			close(client);
		}
	}
	if (!strcmp(act, "connect")) {
		address.svm_cid = VMADDR_CID_HOST;
		/* The kernel's own limit of two seconds is for quicker machines. */
		must("setsockopt", setsockopt(vsock, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &patience, sizeof(patience)));
		must("connect", connect(vsock, (struct sockaddr *)&address, sizeof(address)));
		pid_t sender = fork();

		must("fork", sender);
		if (sender == 0) {
			copy(0, vsock);
			must("shutdown", shutdown(vsock, SHUT_WR));
			return 0;
		}
		copy(vsock, 1);
		int status = 1;

		must("wait", waitpid(sender, &status, 0));
		return status != 0;
	}
	return 0;
}
