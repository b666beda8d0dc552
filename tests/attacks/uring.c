/* io_uring: the same operations, made by the kernel on the process' behalf. Written against the system calls, so
 * that nothing has to be installed. */

#include "attack.h"

#include <linux/io_uring.h>
#include <sys/mman.h>

struct ring {
    int descriptor;
    unsigned *tail, *head, *completed_tail, mask, *array, flags;
    struct io_uring_sqe *entries;
    struct io_uring_cqe *completed;
    unsigned completed_mask, *wakeup;
};

static struct ring open_ring(int polled)
{
    struct io_uring_params params = {0};
    if (polled) {
        params.flags = IORING_SETUP_SQPOLL;
        params.sq_thread_idle = 1000;
    }
    struct ring ring = {0};
    ring.flags = params.flags;
    ring.descriptor = (int)syscall(SYS_io_uring_setup, 8, &params);
    need("io_uring_setup", ring.descriptor);
    size_t queue = params.sq_off.array + params.sq_entries * sizeof(unsigned);
    size_t results = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
    char *sq = mmap(NULL, queue, PROT_READ | PROT_WRITE, MAP_SHARED, ring.descriptor, IORING_OFF_SQ_RING);
    char *cq = mmap(NULL, results, PROT_READ | PROT_WRITE, MAP_SHARED, ring.descriptor, IORING_OFF_CQ_RING);
    ring.entries = mmap(NULL, params.sq_entries * sizeof(struct io_uring_sqe), PROT_READ | PROT_WRITE, MAP_SHARED,
                        ring.descriptor, IORING_OFF_SQES);
    ring.tail = (unsigned *)(sq + params.sq_off.tail);
    ring.mask = *(unsigned *)(sq + params.sq_off.ring_mask);
    ring.array = (unsigned *)(sq + params.sq_off.array);
    ring.wakeup = (unsigned *)(sq + params.sq_off.flags);
    ring.head = (unsigned *)(cq + params.cq_off.head);
    ring.completed_tail = (unsigned *)(cq + params.cq_off.tail);
    ring.completed_mask = *(unsigned *)(cq + params.cq_off.ring_mask);
    ring.completed = (struct io_uring_cqe *)(cq + params.cq_off.cqes);
    return ring;
}

/* One operation, to its end; what it answered, with errno set when that is an error. */
static long run(struct ring *ring, struct io_uring_sqe entry)
{
    unsigned tail = *ring->tail, at = tail & ring->mask;
    ring->entries[at] = entry;
    ring->array[at] = at;
    __atomic_store_n(ring->tail, tail + 1, __ATOMIC_RELEASE);
    unsigned flags = IORING_ENTER_GETEVENTS;
    if (ring->flags & IORING_SETUP_SQPOLL)
        flags |= IORING_ENTER_SQ_WAKEUP;
    unsigned submit = ring->flags & IORING_SETUP_SQPOLL ? 0 : 1;
    need("io_uring_enter", syscall(SYS_io_uring_enter, ring->descriptor, submit, 1, flags, NULL, 0));
    unsigned head = *ring->head;
    while (head == __atomic_load_n(ring->completed_tail, __ATOMIC_ACQUIRE))
        usleep(1000);
    long result = ring->completed[head & ring->completed_mask].res;
    __atomic_store_n(ring->head, head + 1, __ATOMIC_RELEASE);
    if (result < 0) {
        errno = (int)-result;
        return -1;
    }
    return result;
}

static int make_socket(struct ring *ring, int family, int type)
{
    struct io_uring_sqe entry = {.opcode = IORING_OP_SOCKET, .fd = family, .off = (uint64_t)type};
    long s = run(ring, entry);
    need("IORING_OP_SOCKET", s);
    return (int)s;
}

/* HOST PORT [polled]: the socket and the connect, both by the ring. */
void uring_connect(char **words)
{
    struct place to = place(words[0], words[1]);
    struct ring ring = open_ring(*words[2]);
    int s = make_socket(&ring, to.family, SOCK_STREAM);
    struct io_uring_sqe entry = {.opcode = IORING_OP_CONNECT, .fd = s, .addr = (uint64_t)(uintptr_t)&to.address,
                                 .off = to.length};
    long result = run(&ring, entry);
    say("IORING_OP_CONNECT", result, s);
    if (result == 0)
        send(s, PAYLOAD, PAYLOAD_LENGTH, MSG_NOSIGNAL);
}

/* HOST PORT [polled]: a datagram. */
void uring_sendmsg(char **words)
{
    struct place to = place(words[0], words[1]);
    struct ring ring = open_ring(*words[2]);
    int s = make_socket(&ring, to.family, SOCK_DGRAM);
    struct iovec data = {(void *)PAYLOAD, PAYLOAD_LENGTH};
    struct msghdr message = {.msg_name = &to.address, .msg_namelen = to.length, .msg_iov = &data, .msg_iovlen = 1};
    struct io_uring_sqe entry = {.opcode = IORING_OP_SENDMSG, .fd = s, .addr = (uint64_t)(uintptr_t)&message, .len = 1};
    say("IORING_OP_SENDMSG", run(&ring, entry), s);
}
