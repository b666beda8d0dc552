/* What every attack is written with. An attack tries one way out and prints one line of JSON that says what the
 * kernel answered; whether anything got out is for the test to see, on the wire. */

#ifndef ATTACK_H
#define ATTACK_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

/* A destination as the test names it: HOST PORT. */
struct place {
    struct sockaddr_storage address;
    socklen_t length;
    int family;
};

/* `fe80::1%up` names an interface as well. Exits when the words are no address. */
struct place place(const char *host, const char *port);

/* A socket for the place, TCP or UDP; prints the line and exits when there is none. */
int open_tcp(const struct place *to);
int open_udp(const struct place *to);

/* One line: the call that was last made, the errno it set ("ok" for none), the bytes it took, and of the socket
 * (if it is one) the cookie and both names. */
void say(const char *call, long result, int descriptor);

/* `say`, for a call that must work for the attack to go on. */
void need(const char *call, long result);

/* connect(2), and one line about it. Answers what connect did. */
int dial(int descriptor, const struct place *to);

/* Bytes that nobody sends by chance, so that a dump shows where they came from. */
extern const char PAYLOAD[];
enum { PAYLOAD_LENGTH = 24 };

/* The attacks, one group per file. Each takes the words after its name. */
typedef void attack(char **words);
attack tcp_connect, tcp_nonblocking, tcp_from, tcp_from_port, tcp_fastopen, tcp_fastopen_connect, tcp_again, tcp_device_before,
    tcp_device_after, tcp_unicast_if, tcp_dontroute, tcp_renamed, tcp_source_route, tcp_own_listener, tcp_converted, tcp_listen, tcp_loop, tcp_storm, tcp_pair;
attack udp_sendto, udp_connected, udp_sendmmsg, udp_segment, udp_sendfile, udp_pktinfo, udp_corked,
    udp_dns_then_elsewhere, udp_ask, udp_device, udp_device_after, udp_source_route,
    udp_other_family, udp_broadcast, multicast_join, udp_listen, udp_often;
attack kind, kinds, packet, packet_in_namespace, header_included, vsock, tunnel, device;
attack uring_connect, uring_sendmsg;
attack received_connect, received_send, received_sendto, take_descriptor, hand_out, take_in, keep_socket, hand_listener,
    accomplice;
attack cgroup_procs, cgroup_clone, cgroup_namespace, unix_connect, unix_sendto, unix_serve, trace_process,
    write_memory, namespace_connect, bind_port, rewrite_program, ask_for_key, eat_memory;

#endif
