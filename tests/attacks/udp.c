/* Datagrams: every system call that sends one. */

#include "attack.h"

#include <net/if.h>
#include <netinet/udp.h>
#include <poll.h>
#include <sys/sendfile.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif

/* HOST PORT */
void udp_sendto(char **words)
{
    struct place to = place(words[0], words[1]);
    int s = open_udp(&to);
    say("sendto", sendto(s, PAYLOAD, PAYLOAD_LENGTH, 0, (struct sockaddr *)&to.address, to.length), s);
}

/* HOST PORT: send(2) has no address for a hook to see. */
void udp_connected(char **words)
{
    struct place to = place(words[0], words[1]);
    int s = open_udp(&to);
    need("connect", connect(s, (struct sockaddr *)&to.address, to.length));
    say("send", send(s, PAYLOAD, PAYLOAD_LENGTH, 0), s);
}

/* HOST PORT: many in one call. */
void udp_sendmmsg(char **words)
{
    struct place to = place(words[0], words[1]);
    int s = open_udp(&to);
    struct iovec data = {(void *)PAYLOAD, PAYLOAD_LENGTH};
    struct mmsghdr messages[4] = {0};
    for (int i = 0; i < 4; i++) {
        messages[i].msg_hdr.msg_name = &to.address;
        messages[i].msg_hdr.msg_namelen = to.length;
        messages[i].msg_hdr.msg_iov = &data;
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    say("sendmmsg", sendmmsg(s, messages, 4, 0), s);
}

/* HOST PORT: one buffer that the kernel cuts into datagrams. */
void udp_segment(char **words)
{
    struct place to = place(words[0], words[1]);
    int s = open_udp(&to), size = 8;
    need("UDP_SEGMENT", setsockopt(s, SOL_UDP, UDP_SEGMENT, &size, sizeof size));
    say("sendto", sendto(s, PAYLOAD, PAYLOAD_LENGTH, 0, (struct sockaddr *)&to.address, to.length), s);
}

/* HOST PORT: from a file, into a connected socket. */
void udp_sendfile(char **words)
{
    struct place to = place(words[0], words[1]);
    int s = open_udp(&to);
    int file = open("/proc/self/exe", O_RDONLY);
    need("open", file);
    /* Goes on if connect fails: sendfile then has a socket without a peer. */
    int connected = connect(s, (struct sockaddr *)&to.address, to.length);
    int error = errno;
    long sent = sendfile(s, file, NULL, 512);
    if (connected < 0)
        errno = error;
    say("sendfile", connected < 0 ? -1 : sent, s);
}

/* HOST PORT DEVICE: the interface in a control message. */
void udp_pktinfo(char **words)
{
    struct place to = place(words[0], words[1]);
    int s = open_udp(&to);
    struct iovec data = {(void *)PAYLOAD, PAYLOAD_LENGTH};
    char control[64] = {0};
    struct msghdr message = {.msg_name = &to.address, .msg_namelen = to.length, .msg_iov = &data, .msg_iovlen = 1,
                             .msg_control = control};
    struct cmsghdr *header = (struct cmsghdr *)control;
    if (to.family == AF_INET) {
        struct in_pktinfo info = {.ipi_ifindex = (int)if_nametoindex(words[2])};
        header->cmsg_level = IPPROTO_IP, header->cmsg_type = IP_PKTINFO;
        header->cmsg_len = CMSG_LEN(sizeof info);
        message.msg_controllen = CMSG_SPACE(sizeof info);
        memcpy(CMSG_DATA(header), &info, sizeof info);
    } else {
        struct in6_pktinfo info = {.ipi6_ifindex = if_nametoindex(words[2])};
        header->cmsg_level = IPPROTO_IPV6, header->cmsg_type = IPV6_PKTINFO;
        header->cmsg_len = CMSG_LEN(sizeof info);
        message.msg_controllen = CMSG_SPACE(sizeof info);
        memcpy(CMSG_DATA(header), &info, sizeof info);
    }
    say("sendmsg", sendmsg(s, &message, 0), s);
}

/* RESOLVER HOST PORT: begun towards a resolver, finished towards somebody else. */
void udp_corked(char **words)
{
    struct place resolver = place(words[0], "53"), to = place(words[1], words[2]);
    int s = open_udp(&to);
    need("sendto MSG_MORE", sendto(s, PAYLOAD, 8, MSG_MORE, (struct sockaddr *)&resolver.address, resolver.length));
    say("sendto", sendto(s, PAYLOAD, PAYLOAD_LENGTH, 0, (struct sockaddr *)&to.address, to.length), s);
}

/* RESOLVER HOST PORT: a socket that is good for a resolver, used for another destination in every way. */
void udp_dns_then_elsewhere(char **words)
{
    struct place resolver = place(words[0], "53"), to = place(words[1], words[2]);
    int s = open_udp(&to);
    need("connect :53", connect(s, (struct sockaddr *)&resolver.address, resolver.length));
    say("sendto", sendto(s, PAYLOAD, PAYLOAD_LENGTH, 0, (struct sockaddr *)&to.address, to.length), s);
    say("connect", connect(s, (struct sockaddr *)&to.address, to.length), s);
    struct sockaddr nowhere = {.sa_family = AF_UNSPEC};
    connect(s, &nowhere, sizeof nowhere);
    say("sendto", sendto(s, PAYLOAD, PAYLOAD_LENGTH, 0, (struct sockaddr *)&to.address, to.length), s);
}

/* RESOLVER [connected] [DEVICE]: a question for example.test; who answers, and from what address? */
void udp_ask(char **words)
{
    static const unsigned char question[] = {0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 7, 'e', 'x', 'a', 'm',
                                             'p', 'l', 'e', 4, 't', 'e', 's', 't', 0, 0, 1, 0, 1};
    struct place to = place(words[0], "53");
    int s = open_udp(&to);
    if (*words[2])
        need("SO_BINDTODEVICE",
             setsockopt(s, SOL_SOCKET, SO_BINDTODEVICE, words[2], (socklen_t)strlen(words[2])));
    long sent;
    if (strcmp(words[1], "connected") == 0) {
        need("connect", connect(s, (struct sockaddr *)&to.address, to.length));
        sent = send(s, question, sizeof question, 0);
    } else {
        sent = sendto(s, question, sizeof question, 0, (struct sockaddr *)&to.address, to.length);
    }
    say("sendto", sent, s);
    if (sent < 0)
        return;
    unsigned char answer[512];
    struct sockaddr_storage from;
    socklen_t length = sizeof from;
    struct timeval patience = {.tv_sec = 3};
    setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    long got = recvfrom(s, answer, sizeof answer, 0, (struct sockaddr *)&from, &length);
    char text[INET6_ADDRSTRLEN] = "";
    if (got >= 0)
        inet_ntop(from.ss_family,
                  from.ss_family == AF_INET ? (void *)&((struct sockaddr_in *)&from)->sin_addr
                                            : (void *)&((struct sockaddr_in6 *)&from)->sin6_addr,
                  text, sizeof text);
    printf("{\"pid\":%d,\"call\":\"recvfrom\",\"errno\":\"%s\",\"result\":%ld,\"from\":\"%s\"}\n", getpid(),
           got < 0 ? strerrorname_np(errno) : "ok", got, text);
}

/* HOST PORT DEVICE */
void udp_device(char **words)
{
    struct place to = place(words[0], words[1]);
    int s = open_udp(&to);
    need("SO_BINDTODEVICE", setsockopt(s, SOL_SOCKET, SO_BINDTODEVICE, words[2], (socklen_t)strlen(words[2])));
    say("sendto", sendto(s, PAYLOAD, PAYLOAD_LENGTH, 0, (struct sockaddr *)&to.address, to.length), s);
}

/* RESOLVER DEVICE SOURCE: bound to a device once the resolver has been checked. */
void udp_device_after(char **words)
{
    struct place resolver = place(words[0], "53"), from = place(words[2], "0");
    int s = open_udp(&resolver);
    need("bind", bind(s, (struct sockaddr *)&from.address, from.length));
    need("connect :53", connect(s, (struct sockaddr *)&resolver.address, resolver.length));
    need("SO_BINDTODEVICE", setsockopt(s, SOL_SOCKET, SO_BINDTODEVICE, words[1], (socklen_t)strlen(words[1])));
    say("send", send(s, PAYLOAD, PAYLOAD_LENGTH, 0), s);
}

/* HOST PORT VIA: as tcp_source_route. */
void udp_source_route(char **words)
{
    struct place to = place(words[0], words[1]), via = place(words[2], "0");
    int s = open_udp(&to);
    unsigned char options[8] = {1, 131, 7, 4};
    memcpy(options + 4, &((struct sockaddr_in *)&via.address)->sin_addr, 4);
    need("IP_OPTIONS", setsockopt(s, IPPROTO_IP, IP_OPTIONS, options, sizeof options));
    say("sendto", sendto(s, PAYLOAD, PAYLOAD_LENGTH, 0, (struct sockaddr *)&to.address, to.length), s);
}

/* HOST PORT unspec|four [connected]: the address of one family, given to a socket of another or called none. */
void udp_other_family(char **words)
{
    struct place to = place(words[0], words[1]);
    int s = socket(*words[2] == 'f' ? AF_INET6 : AF_INET, SOCK_DGRAM, 0);
    need("socket", s);
    if (*words[2] == 'u')
        to.address.ss_family = AF_UNSPEC;
    if (*words[3]) {
        need("connect", connect(s, (struct sockaddr *)&to.address, to.length));
        say("send", send(s, PAYLOAD, PAYLOAD_LENGTH, 0), s);
    } else {
        say("sendto", sendto(s, PAYLOAD, PAYLOAD_LENGTH, 0, (struct sockaddr *)&to.address, to.length), s);
    }
}

/* HOST PORT */
void udp_broadcast(char **words)
{
    struct place to = place(words[0], words[1]);
    int s = open_udp(&to), yes = 1;
    need("SO_BROADCAST", setsockopt(s, SOL_SOCKET, SO_BROADCAST, &yes, sizeof yes));
    say("sendto", sendto(s, PAYLOAD, PAYLOAD_LENGTH, 0, (struct sockaddr *)&to.address, to.length), s);
}

/* GROUP DEVICE: the kernel itself tells the link which group a process joined. Four bytes of the process' choice
 * (sixteen with IPv6) in every report. */
void multicast_join(char **words)
{
    struct place to = place(words[0], "0");
    int s = open_udp(&to);
    struct group_req request = {.gr_interface = if_nametoindex(words[1])};
    memcpy(&request.gr_group, &to.address, to.length);
    int level = to.family == AF_INET ? IPPROTO_IP : IPPROTO_IPV6;
    int joined = setsockopt(s, level, MCAST_JOIN_GROUP, &request, sizeof request);
    int error = errno;
    /* The report may wait for a random part of a second. */
    if (joined == 0)
        usleep(1500000);
    errno = error;
    say("MCAST_JOIN_GROUP", joined, s);
}

/* HOST PORT: answers whoever sends something, for as long as standard input is open. */
void udp_listen(char **words)
{
    struct place at = place(words[0], words[1]);
    int s = open_udp(&at);
    int bound = bind(s, (struct sockaddr *)&at.address, at.length);
    say("bind", bound, s);
    if (bound < 0)
        return;
    struct pollfd waiting[2] = {{.fd = s, .events = POLLIN}, {.fd = 0, .events = POLLIN}};
    while (poll(waiting, 2, -1) > 0 && !waiting[1].revents) {
        struct sockaddr_storage from;
        socklen_t length = sizeof from;
        char data[64];
        long got = recvfrom(s, data, sizeof data, 0, (struct sockaddr *)&from, &length);
        say("recvfrom", got, s);
        say("sendto", sendto(s, PAYLOAD, PAYLOAD_LENGTH, 0, (struct sockaddr *)&from, length), s);
    }
}

/* HOST PORT TIMES: how many were refused. */
void udp_often(char **words)
{
    struct place to = place(words[0], words[1]);
    int s = open_udp(&to);
    long refused = 0;
    for (int left = atoi(words[2]); left > 0; left--)
        refused += sendto(s, PAYLOAD, PAYLOAD_LENGTH, 0, (struct sockaddr *)&to.address, to.length) < 0;
    printf("{\"pid\":%d,\"refused\":%ld}\n", getpid(), refused);
}
