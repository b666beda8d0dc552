/* Ways out of the cgroup, and into somebody who is outside already. */

#include "attack.h"

#include <dirent.h>
#include <linux/bpf.h>
#include <linux/sched.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <net/if.h>

/* Tries every file below that moves a process; says how many there are and where it worked. */
static int moved(const char *folder, int *tried)
{
    int done = 0;
    DIR *entries = opendir(folder);
    if (!entries)
        return 0;
    struct dirent *entry;
    while ((entry = readdir(entries))) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        if (entry->d_type == DT_DIR && entry->d_name[0] != '.')
            done += moved(path, tried);
        if (strcmp(entry->d_name, "cgroup.procs") && strcmp(entry->d_name, "cgroup.threads")
            && strcmp(entry->d_name, "tasks"))
            continue;
        ++*tried;
        int file = open(path, O_WRONLY);
        if (file < 0)
            continue;
        if (write(file, "0", 1) == 1)
            done++, fprintf(stderr, "moved by %s\n", path);
        close(file);
    }
    closedir(entries);
    return done;
}

/* FOLDER: writes to every cgroup.procs, cgroup.threads and tasks below it. */
void cgroup_procs(char **words)
{
    int tried = 0;
    int done = moved(words[0], &tried);
    printf("{\"pid\":%d,\"tried\":%d,\"moved\":%d,\"errno\":\"%s\"}\n", getpid(), tried, done, done ? "ok" : "EACCES");
}

/* FOLDER: a child that begins its life in another cgroup. */
void cgroup_clone(char **words)
{
    int folder = open(words[0], O_RDONLY | O_DIRECTORY);
    need("open", folder);
    struct clone_args arguments = {.flags = CLONE_INTO_CGROUP, .exit_signal = SIGCHLD, .cgroup = (uint64_t)folder};
    long child = syscall(SYS_clone3, &arguments, sizeof arguments);
    if (child == 0)
        _exit(0);
    say("clone3", child, -1);
}

static void become_root_inside(int more)
{
    char map[64];
    unsigned user = getuid(), group = getgid();
    need("unshare", unshare(CLONE_NEWUSER | more));
    int file = open("/proc/self/setgroups", O_WRONLY);
    if (file >= 0 && write(file, "deny", 4) < 0)
        need("setgroups", -1);
    close(file);
    snprintf(map, sizeof map, "0 %u 1", user);
    file = open("/proc/self/uid_map", O_WRONLY);
    need("uid_map", write(file, map, strlen(map)));
    close(file);
    snprintf(map, sizeof map, "0 %u 1", group);
    file = open("/proc/self/gid_map", O_WRONLY);
    need("gid_map", write(file, map, strlen(map)));
    close(file);
}

/* HOST PORT: root of a user, cgroup and mount namespace mounts a hierarchy of its own and connects from a cgroup
 * it made there. */
void cgroup_namespace(char **words)
{
    become_root_inside(CLONE_NEWCGROUP | CLONE_NEWNS);
    if (mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0
        && mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, NULL) == 0) {
        int tried = 0;
        fprintf(stderr, "mounted; moved %d times\n", moved("/sys/fs/cgroup", &tried));
    }
    struct place to = place(words[0], words[1]);
    dial(open_tcp(&to), &to);
}

static socklen_t unix_place(const char *name, struct sockaddr_un *to)
{
    to->sun_family = AF_UNIX;
    snprintf(to->sun_path, sizeof to->sun_path, "%s", name);
    if (*name == '@') {
        to->sun_path[0] = 0;
        return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(name));
    }
    return sizeof *to;
}

/* NAME [seqpacket]: a path, or @NAME for an abstract one. */
void unix_connect(char **words)
{
    struct sockaddr_un to = {0};
    socklen_t length = unix_place(words[0], &to);
    int s = socket(AF_UNIX, *words[1] ? SOCK_SEQPACKET : SOCK_STREAM, 0);
    need("socket AF_UNIX", s);
    say("connect AF_UNIX", connect(s, (struct sockaddr *)&to, length), -1);
}

/* NAME */
void unix_sendto(char **words)
{
    struct sockaddr_un to = {0};
    socklen_t length = unix_place(words[0], &to);
    int s = socket(AF_UNIX, SOCK_DGRAM, 0);
    need("socket AF_UNIX", s);
    say("sendto AF_UNIX", sendto(s, PAYLOAD, PAYLOAD_LENGTH, 0, (struct sockaddr *)&to, length), -1);
}

/* NAME stream|dgram|seqpacket: listens until standard input ends, and says what comes. */
void unix_serve(char **words)
{
    struct sockaddr_un at = {0};
    socklen_t length = unix_place(words[0], &at);
    int type = *words[1] == 'd' ? SOCK_DGRAM : *words[1] == 's' && words[1][1] == 'e' ? SOCK_SEQPACKET : SOCK_STREAM;
    int s = socket(AF_UNIX, type, 0);
    need("socket AF_UNIX", s);
    need("bind", bind(s, (struct sockaddr *)&at, length));
    if (*words[0] != '@')
        chmod(words[0], 0777);
    if (type != SOCK_DGRAM)
        need("listen", listen(s, 16));
    say("listen", 0, -1);
    struct pollfd waiting[2] = {{.fd = s, .events = POLLIN}, {.fd = 0, .events = POLLIN}};
    while (poll(waiting, 2, -1) > 0 && !waiting[1].revents) {
        char data[64];
        if (type == SOCK_DGRAM)
            say("recv", recv(s, data, sizeof data, 0), -1);
        else
            say("accept", accept(s, NULL, NULL), -1);
    }
}

/* PID */
void trace_process(char **words)
{
    int pid = atoi(words[0]);
    long result = ptrace(PTRACE_ATTACH, pid, NULL, NULL);
    say("ptrace", result, -1);
    if (result == 0)
        waitpid(pid, NULL, 0), ptrace(PTRACE_DETACH, pid, NULL, NULL);
}

/* PID */
void write_memory(char **words)
{
    long target = 0;
    char byte = 0;
    struct iovec here = {&byte, 1}, there = {&target, 1};
    /* The address is not the other process', so EFAULT means: it may, were it given a better one. */
    say("process_vm_writev", process_vm_writev(atoi(words[0]), &here, 1, &there, 1, 0), -1);
}

/* HOST PORT TIMES: from a network namespace of its own, trying again every tenth of a second until it is let
 * through. Says the first answer and the last. */
void namespace_connect(char **words)
{
    struct place to = place(words[0], words[1]);
    become_root_inside(CLONE_NEWNET);
    int control = socket(AF_INET, SOCK_DGRAM, 0);
    struct ifreq loopback = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    ioctl(control, SIOCSIFFLAGS, &loopback);
    for (int left = atoi(words[2]);; left--) {
        int s = open_tcp(&to);
        int result = connect(s, (struct sockaddr *)&to.address, to.length);
        int error = errno;
        say("connect", result, s);
        if (result == 0)
            send(s, PAYLOAD, PAYLOAD_LENGTH, MSG_NOSIGNAL);
        errno = error;
        if (result == 0 || left <= 1)
            return;
        close(s);
        usleep(100000);
    }
}

/* tcp|udp HOST PORT */
void bind_port(char **words)
{
    struct place at = place(words[1], words[2]);
    int s = *words[0] == 'u' ? open_udp(&at) : open_tcp(&at), yes = 1;
    setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    say("bind", bind(s, (struct sockaddr *)&at.address, at.length), s);
}

static long bpf(int command, union bpf_attr *attributes)
{
    return syscall(SYS_bpf, command, attributes, sizeof *attributes);
}

/* CGROUP HOST: what another product's load balancer does. As root: a connect4 program on the cgroup that sends
 * every connect to HOST. Stays until standard input ends; the program goes with it. */
void rewrite_program(char **words)
{
    struct place to = place(words[1], "0");
    uint32_t address = ((struct sockaddr_in *)&to.address)->sin_addr.s_addr;
    struct bpf_insn program[] = {
        {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 2, .imm = (int32_t)address},
        {.code = BPF_STX | BPF_MEM | BPF_W, .dst_reg = 1, .src_reg = 2,
         .off = offsetof(struct bpf_sock_addr, user_ip4)},
        {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .imm = 1},
        {.code = BPF_JMP | BPF_EXIT},
    };
    union bpf_attr load = {.prog_type = BPF_PROG_TYPE_CGROUP_SOCK_ADDR, .insn_cnt = 4,
                           .insns = (uint64_t)(uintptr_t)program, .license = (uint64_t)(uintptr_t) "GPL",
                           .expected_attach_type = BPF_CGROUP_INET4_CONNECT};
    int loaded = (int)bpf(BPF_PROG_LOAD, &load);
    need("BPF_PROG_LOAD", loaded);
    int folder = open(words[0], O_RDONLY | O_DIRECTORY);
    need("open", folder);
    union bpf_attr link = {.link_create = {.prog_fd = (uint32_t)loaded, .target_fd = (uint32_t)folder,
                                           .attach_type = BPF_CGROUP_INET4_CONNECT}};
    int attached = (int)bpf(BPF_LINK_CREATE, &link);
    say("BPF_LINK_CREATE", attached, -1);
    struct pollfd input = {.fd = 0, .events = POLLIN};
    poll(&input, 1, -1);
}

/* MEBIBYTES: takes memory until the kernel ends it. */
void eat_memory(char **words)
{
    for (int i = 0; i < atoi(words[0]); i++) {
        char *piece = malloc(1 << 20);
        if (!piece)
            break;
        memset(piece, i, 1 << 20);
    }
    say("malloc", 0, -1);
}

/* The kernel asks a program outside to make a key: it looks a name up, of the process' choice. */
void ask_for_key(char **words)
{
    say("request_key", syscall(SYS_request_key, "dns_resolver", words[0], "", 0), -1);
}
