// attempts CGROUP UID: what a process in that cgroup may do, one line each: the attempt, then "ok" or an errno.
//
// The first are for the cgroup hooks, on any kernel; the others only the LSM tier stops. Linked statically: the
// machine it runs in has nothing else.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static int become(uid_t uid) {
    // Changing the user clears "dumpable", and what is not dumpable nobody may trace.
    return setgid(uid) || setuid(uid) || prctl(PR_SET_DUMPABLE, 1);
}

static struct sockaddr_un name(const char *text, socklen_t *length) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path + 1, text); // a leading zero: the abstract namespace
    *length = offsetof(struct sockaddr_un, sun_path) + 1 + strlen(text);
    return address;
}

static void listen_as(const char *text, int type) {
    socklen_t length;
    struct sockaddr_un address = name(text, &length);
    int listener = socket(AF_UNIX, type, 0);
    if (bind(listener, (void *)&address, length) || (type == SOCK_STREAM && listen(listener, 9)))
        perror(text), exit(1);
}

static int reach(const char *text, int type) {
    socklen_t length;
    struct sockaddr_un address = name(text, &length);
    return connect(socket(AF_UNIX, type, 0), (void *)&address, length);
}

// 192.0.2.0/24 is for documentation: nobody answers, and this machine has no route there.
static int inet(int type, int protocol, int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, "192.0.2.1", &address.sin_addr);
    int from = socket(AF_INET, type, protocol);
    return type == SOCK_STREAM ? connect(from, (void *)&address, sizeof address)
                               : sendto(from, "x", 1, 0, (void *)&address, sizeof address);
}

static int bpf_map(void) {
    union bpf_attr attr = {
        .map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 4, .max_entries = 1};
    return syscall(SYS_bpf, BPF_MAP_CREATE, &attr, sizeof attr);
}

static int open_memory(pid_t of) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/mem", of);
    return open(path, O_RDWR);
}

static void report(const char *attempt, int result) {
    printf("%s %s\n", attempt, result < 0 ? strerrorname_np(errno) : "ok");
}

int main(int count, char **arguments) {
    if (count != 3)
        return 2;
    uid_t uid = atoi(arguments[2]);
    setvbuf(stdout, NULL, _IOLBF, 0);

    // A stranger of the same user, who stays outside of the cgroup and listens.
    listen_as("stranger", SOCK_STREAM);
    listen_as("stranger-datagram", SOCK_DGRAM);
    pid_t stranger = fork();
    if (stranger == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        become(uid);
        for (;;)
            pause();
    }
    char procs[256];
    snprintf(procs, sizeof procs, "%s/cgroup.procs", arguments[1]);
    int file = open(procs, O_WRONLY);
    if (file < 0 || write(file, "0", 1) != 1 || become(uid))
        return perror(procs), 1;
    close(file);
    usleep(200000); // the stranger has become the user by now

    report("connect", inet(SOCK_STREAM, 0, 5432));
    report("sendto", inet(SOCK_DGRAM, 0, 443));
    report("raw", socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
    report("mptcp", socket(AF_INET, SOCK_STREAM, IPPROTO_MPTCP));

    report("unix", socket(AF_UNIX, SOCK_STREAM, 0));
    report("inet", socket(AF_INET, SOCK_STREAM, 0));
    report("inet6", socket(AF_INET6, SOCK_DGRAM, 0));
    report("netlink-route", socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
    report("netlink-generic", socket(AF_NETLINK, SOCK_RAW, NETLINK_GENERIC));
    report("netlink-audit", socket(AF_NETLINK, SOCK_RAW, NETLINK_AUDIT));
    report("packet", socket(AF_PACKET, SOCK_RAW, 0));
    report("inet-packet", socket(AF_INET, SOCK_PACKET, 0)); // the old spelling of the above
    report("vsock", socket(AF_VSOCK, SOCK_STREAM, 0));
    report("alg", socket(AF_ALG, SOCK_SEQPACKET, 0));
    report("xdp", socket(AF_XDP, SOCK_RAW, 0));

    listen_as("own", SOCK_STREAM);
    report("unix-own", reach("own", SOCK_STREAM));
    report("unix-stranger", reach("stranger", SOCK_STREAM));
    report("unix-stranger-datagram", reach("stranger-datagram", SOCK_DGRAM));

    report("bpf", bpf_map());
    report("memory-own", open_memory(getpid()));
    report("memory-stranger", open_memory(stranger));
    report("ptrace-stranger", ptrace(PTRACE_SEIZE, stranger, 0, 0));
    fflush(stdout);
    pid_t child = fork(); // in a user namespace of its own nothing more could be tried
    if (child == 0) {
        report("userns", unshare(CLONE_NEWUSER));
        _exit(0);
    }
    waitpid(child, NULL, 0);
    kill(stranger, SIGKILL);
    waitpid(stranger, NULL, 0); // its names are free for the next run
    return 0;
}
