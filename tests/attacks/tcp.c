/* Ways to open a TCP connection that a connect hook might not see, or might see wrong. */

#include "attack.h"

#include <net/if.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sys/prctl.h>
#include <time.h>

#ifndef TCP_FASTOPEN_NO_COOKIE
#define TCP_FASTOPEN_NO_COOKIE 34
#endif

/* Until the other side closes, so that it can look at this process. */
static void stay(int s)
{
    char bytes[256];
    while (recv(s, bytes, sizeof bytes, 0) > 0)
        ;
}

/* HOST PORT [stay] */
void tcp_connect(char **words)
{
    struct place to = place(words[0], words[1]);
    int s = open_tcp(&to);
    if (dial(s, &to) == 0 && *words[2])
        stay(s);
}

/* HOST PORT: connect that does not wait, then poll. */
void tcp_nonblocking(char **words)
{
    struct place to = place(words[0], words[1]);
    int s = open_tcp(&to);
    fcntl(s, F_SETFL, O_NONBLOCK);
    int result = connect(s, (struct sockaddr *)&to.address, to.length);
    if (result < 0 && errno == EINPROGRESS) {
        struct pollfd waiting = {.fd = s, .events = POLLOUT};
        poll(&waiting, 1, 5000);
        socklen_t length = sizeof errno;
        int error = 0;
        getsockopt(s, SOL_SOCKET, SO_ERROR, &error, &length);
        errno = error;
        result = error ? -1 : 0;
    }
    say("connect", result, s);
}

/* HOST PORT SOURCE: from an address of the process' choice. */
void tcp_from(char **words)
{
    struct place to = place(words[0], words[1]);
    struct place from = place(words[2], "0");
    int s = open_tcp(&to);
    need("bind", bind(s, (struct sockaddr *)&from.address, from.length));
    dial(s, &to);
}

/* HOST PORT SOURCE PORT: from a port that somebody else had. */
void tcp_from_port(char **words)
{
    struct place to = place(words[0], words[1]), from = place(words[2], words[3]);
    int s = open_tcp(&to), yes = 1;
    setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    /* The one who had it may need a moment to be gone. */
    int bound = -1;
    for (int i = 0; bound < 0 && i < 50; i++) {
        bound = bind(s, (struct sockaddr *)&from.address, from.length);
        usleep(bound < 0 ? 20000 : 0);
    }
    need("bind", bound);
    dial(s, &to);
}

/* HOST PORT [cookieless [stay]]: the SYN is sent by sendto(2), with data in it. */
void tcp_fastopen(char **words)
{
    struct place to = place(words[0], words[1]);
    int s = open_tcp(&to), yes = 1;
    if (*words[2])
        need("TCP_FASTOPEN_NO_COOKIE", setsockopt(s, IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, &yes, sizeof yes));
    long sent = sendto(s, PAYLOAD, PAYLOAD_LENGTH, MSG_FASTOPEN | MSG_NOSIGNAL, (struct sockaddr *)&to.address,
                       to.length);
    say("sendto", sent, s);
    if (sent >= 0 && *words[3])
        stay(s);
}

/* HOST PORT: connect(2) sends nothing, the first write does. */
void tcp_fastopen_connect(char **words)
{
    struct place to = place(words[0], words[1]);
    int s = open_tcp(&to), yes = 1;
    need("TCP_FASTOPEN_CONNECT", setsockopt(s, IPPROTO_TCP, TCP_FASTOPEN_CONNECT, &yes, sizeof yes));
    setsockopt(s, IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, &yes, sizeof yes);
    need("connect", connect(s, (struct sockaddr *)&to.address, to.length));
    say("send", send(s, PAYLOAD, PAYLOAD_LENGTH, MSG_NOSIGNAL), s);
}

/* HOST PORT HOST PORT: one socket, dissolved by AF_UNSPEC, connects again. */
void tcp_again(char **words)
{
    struct place first = place(words[0], words[1]), second = place(words[2], words[3]);
    int s = open_tcp(&first);
    dial(s, &first);
    struct sockaddr nowhere = {.sa_family = AF_UNSPEC};
    need("connect AF_UNSPEC", connect(s, &nowhere, sizeof nowhere));
    dial(s, &second);
}

static void bind_to_device(int s, const char *device)
{
    need("SO_BINDTODEVICE", setsockopt(s, SOL_SOCKET, SO_BINDTODEVICE, device, (socklen_t)strlen(device)));
}

/* HOST PORT DEVICE: a SYN to 127.0.0.1 of a socket bound to a device leaves through that device. */
void tcp_device_before(char **words)
{
    struct place to = place(words[0], words[1]);
    int s = open_tcp(&to);
    bind_to_device(s, words[2]);
    dial(s, &to);
}

/* HOST PORT DEVICE [SOURCE]: bound once the connect has been checked. From a loopback address the kernel itself
 * sends nothing over another device; from the host's own it does. */
void tcp_device_after(char **words)
{
    struct place to = place(words[0], words[1]);
    int s = open_tcp(&to);
    if (*words[3]) {
        struct place from = place(words[3], "0");
        need("bind", bind(s, (struct sockaddr *)&from.address, from.length));
    }
    if (dial(s, &to) < 0)
        return;
    bind_to_device(s, words[2]);
    long sent = 0;
    for (int i = 0; i < 5; i++)
        sent = send(s, PAYLOAD, PAYLOAD_LENGTH, MSG_NOSIGNAL);
    /* Time for it to be sent again. */
    usleep(600000);
    say("send", sent, s);
}

/* HOST PORT DEVICE */
void tcp_unicast_if(char **words)
{
    struct place to = place(words[0], words[1]);
    int s = open_tcp(&to);
    uint32_t index = htonl(if_nametoindex(words[2]));
    if (to.family == AF_INET)
        need("IP_UNICAST_IF", setsockopt(s, IPPROTO_IP, IP_UNICAST_IF, &index, sizeof index));
    else
        need("IPV6_UNICAST_IF", setsockopt(s, IPPROTO_IPV6, IPV6_UNICAST_IF, &index, sizeof index));
    dial(s, &to);
}

/* HOST PORT VIA: the packet goes to VIA first, which is asked to pass it on (RFC 791 loose source route, RFC 8754
 * segment routing): on the wire VIA is the destination. */
void tcp_source_route(char **words)
{
    struct place to = place(words[0], words[1]), via = place(words[2], "0");
    int s = open_tcp(&to);
    if (to.family == AF_INET) {
        unsigned char options[8] = {1, 131, 7, 4};
        memcpy(options + 4, &((struct sockaddr_in *)&via.address)->sin_addr, 4);
        need("IP_OPTIONS", setsockopt(s, IPPROTO_IP, IP_OPTIONS, options, sizeof options));
    } else {
        /* Two segments: the last one comes first in the header. */
        unsigned char header[8 + 32] = {0, 4, 4, 1, 1, 0, 0, 0};
        memcpy(header + 8, &((struct sockaddr_in6 *)&to.address)->sin6_addr, 16);
        memcpy(header + 24, &((struct sockaddr_in6 *)&via.address)->sin6_addr, 16);
        need("IPV6_RTHDR", setsockopt(s, IPPROTO_IPV6, IPV6_RTHDR, header, sizeof header));
    }
    dial(s, &to);
}

/* HOST PORT LISTEN [free]: with a listener of its own on that port, which a lookup of the destination may find; on
 * an address that is not the host's, if free. */
void tcp_own_listener(char **words)
{
    struct place to = place(words[0], words[1]), at = place(words[2], words[1]);
    int listener = open_tcp(&at), yes = 1;
    if (*words[3])
        need("IP_FREEBIND", setsockopt(listener, IPPROTO_IP, IP_FREEBIND, &yes, sizeof yes));
    need("bind", bind(listener, (struct sockaddr *)&at.address, at.length));
    need("listen", listen(listener, 4));
    int s = open_tcp(&to);
    struct timeval patience = {.tv_sec = 1};
    setsockopt(s, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    dial(s, &to);
}

/* MAPPED PORT HOST PORT: an IPv6 socket with an IPv4 peer becomes an IPv4 socket, and connects again. */
void tcp_converted(char **words)
{
    struct place first = place(words[0], words[1]), second = place(words[2], words[3]);
    int s = open_tcp(&first), family = AF_INET;
    if (dial(s, &first) < 0)
        return;
    need("IPV6_ADDRFORM", setsockopt(s, IPPROTO_IPV6, IPV6_ADDRFORM, &family, sizeof family));
    struct sockaddr nowhere = {.sa_family = AF_UNSPEC};
    need("connect AF_UNSPEC", connect(s, &nowhere, sizeof nowhere));
    dial(s, &second);
}

/* HOST PORT */
void tcp_dontroute(char **words)
{
    struct place to = place(words[0], words[1]);
    int s = open_tcp(&to), yes = 1;
    need("SO_DONTROUTE", setsockopt(s, SOL_SOCKET, SO_DONTROUTE, &yes, sizeof yes));
    dial(s, &to);
}

/* HOST PORT NAME: with another program's name. */
void tcp_renamed(char **words)
{
    prctl(PR_SET_NAME, words[2]);
    struct place to = place(words[0], words[1]);
    dial(open_tcp(&to), &to);
}

/* HOST PORT: waits to be dialled, for as long as standard input is open. */
void tcp_listen(char **words)
{
    struct place at = place(words[0], words[1]);
    int s = open_tcp(&at), yes = 1;
    setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    need("bind", bind(s, (struct sockaddr *)&at.address, at.length));
    int result = listen(s, 16);
    say("listen", result, s);
    struct pollfd waiting[2] = {{.fd = s, .events = POLLIN}, {.fd = 0, .events = POLLIN}};
    while (poll(waiting, 2, -1) > 0 && !waiting[1].revents) {
        int accepted = accept(s, NULL, NULL);
        say("accept", accepted, accepted);
        send(accepted, PAYLOAD, PAYLOAD_LENGTH, MSG_NOSIGNAL);
    }
}

/* HOST PORT MILLISECONDS: connects again and again until standard input ends. One line for every change of what connect
 * answers, with how often it was answered until then, and at the end. */
void tcp_loop(char **words)
{
    struct place to = place(words[0], words[1]);
    int last = -1;
    long times = 0;
    struct timespec pause = {.tv_nsec = atol(words[2]) * 1000000};
    struct pollfd input = {.fd = 0, .events = POLLIN};
    for (;;) {
        int over = poll(&input, 1, 0) > 0;
        int s = socket(to.family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        struct timeval patience = {.tv_sec = 5};
        setsockopt(s, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
        int error = over ? -2 : connect(s, (struct sockaddr *)&to.address, to.length) ? errno : 0;
        if (error != last && last != -1) {
            struct timespec now;
            clock_gettime(CLOCK_MONOTONIC, &now);
            printf("{\"pid\":%d,\"answer\":\"%s\",\"times\":%ld,\"until_ms\":%lld}\n", getpid(),
                   last ? strerrorname_np(last) : "ok", times,
                   (long long)now.tv_sec * 1000 + now.tv_nsec / 1000000);
            fflush(stdout);
            times = 0;
        }
        if (over)
            return;
        last = error;
        times++;
        /* No TIME-WAIT: thousands of them would use up the ports. */
        struct linger hard = {.l_onoff = 1};
        setsockopt(s, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
        close(s);
        nanosleep(&pause, NULL);
    }
}

/* One client of the storm: its number is in every address and port that it dials. */
struct client {
    int number, connects;
    long done, refused, failed;
};

/* What client `number` dials the `n`th time. Three families; every eighth goes where nobody is. */
static struct place storm_place(int number, int n)
{
    char host[64], port[16];
    if (n % 3 == 0)
        snprintf(host, sizeof host, "10.200.%d.%d", number, n % 251 + 1);
    else if (n % 3 == 1)
        snprintf(host, sizeof host, "fd00:200::%x:%x", number, n);
    else
        snprintf(host, sizeof host, "::ffff:10.201.%d.%d", number, n % 251 + 1);
    snprintf(port, sizeof port, "%d", n % 8 == 7 ? 9 : 10000 + n);
    return place(host, port);
}

static void *storm_client(void *argument)
{
    struct client *client = argument;
    for (int n = 0; n < client->connects; n++) {
        struct place to = storm_place(client->number, n);
        int s = socket(to.family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        struct timeval patience = {.tv_sec = 30};
        setsockopt(s, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
        setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        if (connect(s, (struct sockaddr *)&to.address, to.length) == 0) {
            client->done++;
            /* Every fifth closes at once, before the gateway can have accepted it. */
            if (n % 5 != 4) {
                uint32_t mark[2] = {(uint32_t)client->number, (uint32_t)n};
                char end;
                if (send(s, mark, sizeof mark, MSG_NOSIGNAL) != sizeof mark || recv(s, &end, 1, 0) < 0)
                    client->failed++;
            }
        } else if (errno == ECONNREFUSED) {
            client->refused++;
        } else {
            fprintf(stderr, "client %d, connect %d: %s\n", client->number, n, strerrorname_np(errno));
            client->failed++;
        }
        close(s);
    }
    return NULL;
}

/* CLIENTS CONNECTS: clients at the same time, each a thread. */
void tcp_storm(char **words)
{
    enum { MOST = 64 };
    int count = atoi(words[0]);
    pthread_t threads[MOST];
    struct client clients[MOST] = {0}, all = {0};
    for (int i = 0; i < count && i < MOST; i++) {
        clients[i].number = i;
        clients[i].connects = atoi(words[1]);
        pthread_create(&threads[i], NULL, storm_client, &clients[i]);
    }
    for (int i = 0; i < count && i < MOST; i++) {
        pthread_join(threads[i], NULL);
        all.done += clients[i].done;
        all.refused += clients[i].refused;
        all.failed += clients[i].failed;
    }
    printf("{\"pid\":%d,\"done\":%ld,\"refused\":%ld,\"failed\":%ld}\n", getpid(), all.done, all.refused,
           all.failed);
}

/* HOST TIMES: connects to itself; prints how long each connect took, in nanoseconds. */
void tcp_pair(char **words)
{
    struct place at = place(words[0], "0");
    int listener = open_tcp(&at);
    need("bind", bind(listener, (struct sockaddr *)&at.address, at.length));
    need("listen", listen(listener, 16));
    need("getsockname", getsockname(listener, (struct sockaddr *)&at.address, &at.length));
    for (int left = atoi(words[1]); left > 0; left--) {
        int s = socket(at.family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        struct timespec before, after;
        clock_gettime(CLOCK_MONOTONIC, &before);
        int result = connect(s, (struct sockaddr *)&at.address, at.length);
        clock_gettime(CLOCK_MONOTONIC, &after);
        need("connect", result);
        printf("%lld\n",
               (long long)(after.tv_sec - before.tv_sec) * 1000000000 + after.tv_nsec - before.tv_nsec);
        int accepted = accept(listener, NULL, NULL);
        struct linger hard = {.l_onoff = 1};
        setsockopt(s, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
        close(s);
        close(accepted);
    }
}
