//! Packets, the last line: whatever a socket was before, what leaves it goes to the gateway or stays within
//! the agent, over loopback.

use core::mem::MaybeUninit;
use core::ptr::{addr_of, from_ref};

use aya_ebpf::bindings::{__sk_buff, BPF_ANY, bpf_sock};
use aya_ebpf::helpers::bpf_map_update_elem;
use aya_ebpf::helpers::generated::{bpf_sk_fullsock, bpf_skb_load_bytes};
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;
use gateway_ebpf::decide::{self, Denial, IPPROTO_TCP, IPPROTO_UDP, Packet};
use gateway_ebpf::flow::kind;
use gateway_ebpf::{Address, ConnKey, DatagramKey, Flow, Settings};

use super::account::{self, Attempt};
use super::answer::{ALLOW_PACKET, deny};
use super::caller::Caller;
use super::maps::{self, CONNS, DATAGRAMS, SK_ORIG, SK_OWNER};

const TCP_LISTEN: u32 = 10;
const TCP_FLAGS: u32 = 13;

#[cgroup_skb(egress)]
pub fn egress(ctx: SkBuffContext) -> i32 {
    let packet = ctx.skb.skb;
    // SAFETY: context words.
    let (bytes, interface) = unsafe {
        (
            addr_of!((*packet).len).read_volatile(),
            addr_of!((*packet).ifindex).read_volatile(),
        )
    };
    let settings = maps::settings();
    let by = Caller::of_packet(settings, packet);
    let (Some(settings), Some(headers)) = (settings, headers(packet)) else {
        return deny(Denial::Egress, by, Attempt::UNKNOWN);
    };
    match leave(packet, &headers, interface, settings) {
        Ok(()) => {
            account::sent(by, bytes);
            ALLOW_PACKET
        }
        Err(denial) => {
            let attempt = Attempt {
                netns_cookie: 0,
                destination: headers.destination,
                port: headers.destination_port,
                protocol: headers.protocol,
            };
            deny(denial, by, attempt)
        }
    }
}

#[cgroup_skb(ingress)]
pub fn ingress(ctx: SkBuffContext) -> i32 {
    let packet = ctx.skb.skb;
    // SAFETY: context words.
    let (bytes, interface) = unsafe {
        (
            addr_of!((*packet).len).read_volatile(),
            addr_of!((*packet).ifindex).read_volatile(),
        )
    };
    let by = Caller::of_packet(maps::settings(), packet);
    match decide::ingress(interface) {
        Ok(()) => {
            account::received(by, bytes);
            ALLOW_PACKET
        }
        Err(denial) => deny(denial, by, Attempt::UNKNOWN),
    }
}

#[inline(always)]
fn leave(
    packet: *mut __sk_buff,
    headers: &Headers,
    interface: u32,
    settings: &Settings,
) -> Result<(), Denial> {
    let socket = full_socket(packet).ok_or(Denial::Egress)?;
    // SAFETY: a word of the socket.
    let state = unsafe { addr_of!((*socket).state).read_volatile() };
    if state == TCP_LISTEN && headers.protocol == IPPROTO_TCP {
        return answer(socket, headers, interface, settings);
    }
    let flow = maps::stored(&SK_ORIG, socket).ok_or(Denial::Egress)?;
    let going = Packet {
        interface,
        protocol: headers.protocol,
        destination: headers.destination,
        destination_port: headers.destination_port,
        flags: headers.flags,
        kind: flow.kind,
    };
    decide::egress(going, settings.gateway_port as u16)?;
    if flow.kind == kind::DNS {
        introduce(headers, flow)?;
    }
    Ok(())
}

/// A listener's SYN-ACK: only to a connect(2) of the same agent, whose hook left it alone. From here on that
/// socket may send.
#[inline(always)]
fn answer(
    listener: *mut bpf_sock,
    headers: &Headers,
    interface: u32,
    settings: &Settings,
) -> Result<(), Denial> {
    let owner = maps::stored(&SK_OWNER, listener).ok_or(Denial::Egress)?;
    let key = ConnKey {
        netns_cookie: owner.netns_cookie,
        source: headers.destination,
        destination: headers.source,
        source_port: headers.destination_port,
        destination_port: headers.source_port,
        reserved: 0,
    };
    let flow = CONNS.get_ptr_mut(key).ok_or(Denial::Egress)?;
    // SAFETY: a map value; nobody but the two hooks of this handshake has to do with it.
    unsafe {
        decide::answers(
            interface,
            (*flow).kind,
            (*flow).subtree,
            owner.subtree,
            settings.agents_id,
        )?;
        (*flow).kind = kind::LOCAL_OPEN;
    }
    Ok(())
}

/// Tells the resolver who asks: only here is the source port known of every question.
#[inline(always)]
fn introduce(headers: &Headers, flow: &Flow) -> Result<(), Denial> {
    let key = DatagramKey {
        netns_cookie: flow.netns_cookie,
        source: headers.source,
        source_port: headers.source_port,
        reserved: [0; 3],
    };
    // SAFETY: key and value are of the map's types; the helper copies both.
    let result = unsafe {
        bpf_map_update_elem(
            addr_of!(DATAGRAMS).cast_mut().cast(),
            from_ref(&key).cast(),
            from_ref(flow).cast(),
            BPF_ANY.into(),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(Denial::NoStorage),
    }
}

#[inline(always)]
fn full_socket(packet: *mut __sk_buff) -> Option<*mut bpf_sock> {
    // SAFETY: a context word, and a helper that takes what it holds.
    unsafe {
        let socket = addr_of!((*packet).__bindgen_anon_2.sk).read_volatile();
        if socket.is_null() {
            return None;
        }
        let socket = bpf_sk_fullsock(socket);
        (!socket.is_null()).then_some(socket)
    }
}

/// What a packet says of itself.
struct Headers {
    protocol: u32,
    source: Address,
    destination: Address,
    source_port: u16,
    destination_port: u16,
    /// Of TCP; 0 for UDP.
    flags: u8,
}

/// TCP and UDP directly over IP; `None` for everything else, fragments and extension headers included.
#[inline(always)]
fn headers(packet: *mut __sk_buff) -> Option<Headers> {
    let first: u8 = load(packet, 0)?;
    let (protocol, source, destination, transport) = match first >> 4 {
        4 => {
            // Network byte order; the third word has TTL, protocol, checksum.
            let words: [u32; 5] = load(packet, 0)?;
            let fragment = u32::from_be(words[1]) & 0x3fff;
            if fragment != 0 {
                return None;
            }
            let protocol = (u32::from_be(words[2]) >> 16) & 0xff;
            let length = u32::from(first & 0xf) * 4;
            (
                protocol,
                Address::v4(words[3]),
                Address::v4(words[4]),
                length,
            )
        }
        6 => {
            let words: [u32; 10] = load(packet, 0)?;
            // Payload length, next header, hop limit.
            let protocol = (u32::from_be(words[1]) >> 8) & 0xff;
            let source = Address([words[2], words[3], words[4], words[5]]);
            let destination = Address([words[6], words[7], words[8], words[9]]);
            (protocol, source, destination, 40)
        }
        _ => return None,
    };
    let ports: [u16; 2] = load(packet, transport)?;
    let flags = match protocol {
        IPPROTO_TCP => load(packet, transport + TCP_FLAGS)?,
        IPPROTO_UDP => 0,
        _ => return None,
    };
    Some(Headers {
        protocol,
        source,
        destination,
        source_port: u16::from_be(ports[0]),
        destination_port: u16::from_be(ports[1]),
        flags,
    })
}

#[inline(always)]
fn load<T: Copy>(packet: *mut __sk_buff, offset: u32) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    let length = size_of::<T>() as u32;
    // SAFETY: the helper writes as many bytes as T has, or says that it could not; only integers and arrays
    // of them are asked for.
    unsafe {
        match bpf_skb_load_bytes(packet.cast(), offset, value.as_mut_ptr().cast(), length) {
            0 => Some(value.assume_init()),
            _ => None,
        }
    }
}
