/* Sockets that were made elsewhere. A socket belongs to the cgroup of whoever made it, for good. */

#include "attack.h"

#include <poll.h>
#include <signal.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/un.h>

static void give(int through, int descriptor)
{
    char byte = '!', control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec data = {&byte, 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control,
                             .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &descriptor, sizeof descriptor);
    need("sendmsg SCM_RIGHTS", sendmsg(through, &message, 0));
}

static int take(int through)
{
    char byte, control[CMSG_SPACE(sizeof(int))];
    struct iovec data = {&byte, 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control,
                             .msg_controllen = sizeof control};
    need("recvmsg SCM_RIGHTS", recvmsg(through, &message, 0));
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    int descriptor = -1;
    if (header)
        memcpy(&descriptor, CMSG_DATA(header), sizeof descriptor);
    return descriptor;
}

/* HOST PORT: standard input is a TCP or UDP socket from outside, not connected yet. */
void received_connect(char **words)
{
    struct place to = place(words[0], words[1]);
    dial(0, &to);
}

/* Standard input is a connected socket from outside. */
void received_send(char **words)
{
    (void)words;
    say("send", send(0, PAYLOAD, PAYLOAD_LENGTH, MSG_NOSIGNAL), 0);
}

/* HOST PORT: standard input is a UDP socket from outside. */
void received_sendto(char **words)
{
    struct place to = place(words[0], words[1]);
    say("sendto", sendto(0, PAYLOAD, PAYLOAD_LENGTH, 0, (struct sockaddr *)&to.address, to.length), 0);
}

/* PID FD HOST PORT: takes a descriptor out of another process. */
void take_descriptor(char **words)
{
    int process = (int)syscall(SYS_pidfd_open, atoi(words[0]), 0);
    need("pidfd_open", process);
    int s = (int)syscall(SYS_pidfd_getfd, process, atoi(words[1]), 0);
    need("pidfd_getfd", s);
    struct place to = place(words[2], words[3]);
    dial(s, &to);
}

/* 4|6|4u|6u: standard input is a Unix socket; makes a TCP (UDP) socket and hands it out. */
void hand_out(char **words)
{
    int s = socket(words[0][0] == '6' ? AF_INET6 : AF_INET, *words[0] && words[0][1] ? SOCK_DGRAM : SOCK_STREAM, 0);
    need("socket", s);
    give(0, s);
}

/* HOST PORT: connects a socket that comes in through standard input. */
void take_in(char **words)
{
    int s = take(0);
    struct place to = place(words[0], words[1]);
    dial(s, &to);
}

/* tcp|udp [HOST PORT]: a process outside that has a socket, connected if an address is given. Says which, and
 * stays as long as standard input is open. */
void keep_socket(char **words)
{
    prctl(PR_SET_DUMPABLE, 1);
    int type = strcmp(words[0], "udp") == 0 ? SOCK_DGRAM : SOCK_STREAM;
    struct place to = place(*words[1] ? words[1] : "0.0.0.0", *words[2] ? words[2] : "0");
    int s = socket(to.family, type, 0);
    need("socket", s);
    if (*words[1])
        need("connect", connect(s, (struct sockaddr *)&to.address, to.length));
    say("socket", s, s);
    struct pollfd input = {.fd = 0, .events = POLLIN};
    poll(&input, 1, -1);
}

/* HOST PORT: standard input is a Unix socket; connects and hands the connection over. */
void accomplice(char **words)
{
    struct place to = place(words[0], words[1]);
    int s = open_tcp(&to);
    need("connect", connect(s, (struct sockaddr *)&to.address, to.length));
    give(0, s);
}

/* tcp|udp HOST PORT: standard input is a Unix socket; a bound socket, listening if it is TCP, is handed over. */
void hand_listener(char **words)
{
    struct place at = place(words[1], words[2]);
    int s = *words[0] == 'u' ? open_udp(&at) : open_tcp(&at), yes = 1;
    setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    need("bind", bind(s, (struct sockaddr *)&at.address, at.length));
    if (*words[0] != 'u')
        need("listen", listen(s, 4096));
    give(0, s);
}
