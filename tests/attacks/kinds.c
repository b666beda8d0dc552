/* Sockets that are neither TCP nor UDP, and devices that packets can be fed to. */

#include "attack.h"

#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/vm_sockets.h>
#include <net/if.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

/* FAMILY TYPE PROTOCOL: one socket. */
void kind(char **words)
{
    int s = socket(atoi(words[0]), atoi(words[1]), atoi(words[2]));
    say("socket", s, -1);
}

/* Every family that Linux has a number for, with every type: a line for each that can be made. */
void kinds(char **words)
{
    (void)words;
    static const int types[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_RAW, SOCK_RDM, SOCK_SEQPACKET, SOCK_PACKET};
    int tried = 0;
    for (int family = 0; family <= 46; family++) {
        for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
            tried++;
            int s = socket(family, types[i], family == AF_PACKET ? htons(ETH_P_ALL) : 0);
            if (s < 0)
                continue;
            printf("{\"family\":%d,\"type\":%d}\n", family, types[i]);
            close(s);
        }
    }
    printf("{\"pid\":%d,\"tried\":%d}\n", getpid(), tried);
}

/* A whole frame for the device, by a packet socket. */
static void send_frame(const char *device)
{
    int s = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL));
    need("socket AF_PACKET", s);
    unsigned char frame[60] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x88, 0xb5};
    memcpy(frame + 14, PAYLOAD, PAYLOAD_LENGTH);
    struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_ifindex = (int)if_nametoindex(device),
                             .sll_protocol = htons(0x88b5)};
    say("sendto AF_PACKET", sendto(s, frame, sizeof frame, 0, (struct sockaddr *)&to, sizeof to), -1);
}

/* DEVICE */
void packet(char **words)
{
    send_frame(words[0]);
}

/* DEVICE: a user namespace makes anybody root of a network namespace, and there packet sockets exist. */
void packet_in_namespace(char **words)
{
    int result = unshare(CLONE_NEWUSER | CLONE_NEWNET);
    say("unshare", result, -1);
    if (result == 0) {
        int s = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL));
        say("socket AF_PACKET", s, -1);
        say("if_nametoindex", if_nametoindex(words[0]) ? 0 : -1, -1);
        send_frame(words[0]);
    }
}

/* HOST PORT: a datagram with an IP header of its own making. */
void header_included(char **words)
{
    struct place to = place(words[0], words[1]);
    int s = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);
    need("socket SOCK_RAW", s);
    struct {
        struct iphdr ip;
        struct udphdr udp;
        char data[PAYLOAD_LENGTH];
    } datagram = {.ip = {.version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_UDP,
                         .daddr = ((struct sockaddr_in *)&to.address)->sin_addr.s_addr},
                  .udp = {.dest = htons((uint16_t)atoi(words[1])), .len = htons(8 + PAYLOAD_LENGTH)}};
    memcpy(datagram.data, PAYLOAD, PAYLOAD_LENGTH);
    say("sendto", sendto(s, &datagram, sizeof datagram, 0, (struct sockaddr *)&to.address, to.length), -1);
}

/* The host of a virtual machine, which is a way out that is no network. */
void vsock(char **words)
{
    (void)words;
    int s = socket(AF_VSOCK, SOCK_STREAM, 0);
    need("socket AF_VSOCK", s);
    struct timeval patience = {.tv_sec = 1};
    setsockopt(s, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &patience, sizeof patience);
    /* Nobody listens there: what matters is who says so. */
    struct sockaddr_vm to = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_LOCAL, .svm_port = 1};
    say("connect AF_VSOCK", connect(s, (struct sockaddr *)&to, sizeof to), -1);
}

/* [namespace]: a tunnel device takes packets that no socket sent. */
void tunnel(char **words)
{
    if (*words[0])
        need("unshare", unshare(CLONE_NEWUSER | CLONE_NEWNET));
    int file = open("/dev/net/tun", O_RDWR);
    need("open /dev/net/tun", file);
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
    say("TUNSETIFF", ioctl(file, TUNSETIFF, &request), -1);
}

/* PATH */
void device(char **words)
{
    say("open", open(words[0], O_RDWR | O_NONBLOCK), -1);
}
