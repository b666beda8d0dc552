/* attack NAME WORDS…: one way past the interception, tried once. */

#include "attack.h"

const char PAYLOAD[] = "sluice-bypass-payload-01";

static const struct {
    const char *name;
    attack *run;
} ATTACKS[] = {
#define A(name) {#name, name}
    A(tcp_connect), A(tcp_nonblocking), A(tcp_from), A(tcp_from_port), A(tcp_fastopen), A(tcp_fastopen_connect), A(tcp_again),
    A(tcp_device_before), A(tcp_device_after), A(tcp_unicast_if), A(tcp_dontroute), A(tcp_renamed), A(tcp_source_route),
    A(tcp_own_listener), A(tcp_converted),
    A(tcp_listen), A(tcp_loop), A(tcp_storm), A(tcp_pair),
    A(udp_sendto), A(udp_connected), A(udp_sendmmsg), A(udp_segment), A(udp_sendfile), A(udp_pktinfo),
    A(udp_corked), A(udp_dns_then_elsewhere), A(udp_ask), A(udp_device), A(udp_device_after),
    A(udp_source_route), A(udp_other_family), A(udp_broadcast), A(multicast_join),
    A(udp_listen), A(udp_often),
    A(kind), A(kinds), A(packet), A(packet_in_namespace), A(header_included), A(vsock), A(tunnel), A(device),
    A(uring_connect), A(uring_sendmsg),
    A(received_connect), A(received_send), A(received_sendto), A(take_descriptor), A(hand_out), A(take_in),
    A(keep_socket), A(hand_listener), A(accomplice),
    A(cgroup_procs), A(cgroup_clone), A(cgroup_namespace), A(unix_connect), A(unix_sendto), A(unix_serve),
    A(trace_process), A(write_memory), A(namespace_connect), A(bind_port), A(rewrite_program), A(ask_for_key),
    A(eat_memory),
#undef A
};

int main(int count, char **words)
{
    for (size_t i = 0; count > 1 && i < sizeof ATTACKS / sizeof *ATTACKS; i++) {
        if (strcmp(words[1], ATTACKS[i].name) == 0) {
            /* Words that are missing read as empty ones. */
            char *rest[9];
            for (int n = 0; n < 9; n++)
                rest[n] = n + 2 < count ? words[n + 2] : "";
            ATTACKS[i].run(rest);
            return 0;
        }
    }
    fprintf(stderr, "usage: attack NAME WORDS…\n");
    return 2;
}

struct place place(const char *host, const char *port)
{
    struct place to = {0};
    char name[128];
    snprintf(name, sizeof name, "%s", host);
    char *scope = strchr(name, '%');
    if (scope)
        *scope++ = 0;
    struct sockaddr_in *v4 = (struct sockaddr_in *)&to.address;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&to.address;
    if (inet_pton(AF_INET, name, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons((uint16_t)atoi(port));
        to.length = sizeof *v4;
    } else if (inet_pton(AF_INET6, name, &v6->sin6_addr) == 1) {
        v6->sin6_family = AF_INET6;
        v6->sin6_port = htons((uint16_t)atoi(port));
        v6->sin6_scope_id = scope ? (uint32_t)atoi(scope) : 0;
        to.length = sizeof *v6;
    } else {
        fprintf(stderr, "attack: %s is no address\n", host);
        exit(2);
    }
    to.family = to.address.ss_family;
    return to;
}

static void put_name(const char *key, int failed, const struct sockaddr_storage *address)
{
    char text[INET6_ADDRSTRLEN] = "";
    if (failed)
        return;
    if (address->ss_family == AF_INET) {
        const struct sockaddr_in *v4 = (const struct sockaddr_in *)address;
        inet_ntop(AF_INET, &v4->sin_addr, text, sizeof text);
        printf(",\"%s\":\"%s:%u\"", key, text, ntohs(v4->sin_port));
    } else if (address->ss_family == AF_INET6) {
        const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)address;
        inet_ntop(AF_INET6, &v6->sin6_addr, text, sizeof text);
        printf(",\"%s\":\"[%s]:%u\"", key, text, ntohs(v6->sin6_port));
    }
}

void say(const char *call, long result, int descriptor)
{
    int error = result < 0 ? errno : 0;
    const char *name = error ? strerrorname_np(error) : "ok";
    printf("{\"pid\":%d,\"call\":\"%s\",\"errno\":\"%s\",\"result\":%ld", getpid(), call, name ? name : "?",
           result);
    if (descriptor >= 0) {
        uint64_t cookie = 0;
        socklen_t length = sizeof cookie;
        if (getsockopt(descriptor, SOL_SOCKET, SO_COOKIE, &cookie, &length) == 0)
            printf(",\"cookie\":%llu", (unsigned long long)cookie);
        struct sockaddr_storage address;
        length = sizeof address;
        put_name("peer", getpeername(descriptor, (struct sockaddr *)&address, &length), &address);
        length = sizeof address;
        put_name("own", getsockname(descriptor, (struct sockaddr *)&address, &length), &address);
    }
    printf("}\n");
    fflush(stdout);
    errno = error;
}

void need(const char *call, long result)
{
    if (result < 0) {
        say(call, result, -1);
        exit(0);
    }
}

static int open_socket(int family, int type)
{
    int descriptor = socket(family, type, 0);
    need("socket", descriptor);
    /* No attack waits long for an answer that may never come. */
    struct timeval patience = {.tv_sec = 5};
    setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(descriptor, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    return descriptor;
}

int open_tcp(const struct place *to)
{
    return open_socket(to->family, SOCK_STREAM);
}

int open_udp(const struct place *to)
{
    return open_socket(to->family, SOCK_DGRAM);
}

int dial(int descriptor, const struct place *to)
{
    int result = connect(descriptor, (const struct sockaddr *)&to->address, to->length);
    say("connect", result, descriptor);
    if (result == 0)
        send(descriptor, PAYLOAD, PAYLOAD_LENGTH, MSG_NOSIGNAL);
    return result;
}
