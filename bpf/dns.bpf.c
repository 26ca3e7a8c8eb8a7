/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * What passes between a process and port 53, whole. It names a connection
 * where nothing better is known: the resolver's own process, and a program
 * whose C library was not probed yet when it asked. Parsed in user space.
 */
#include "event.h"
#include "kernel_fields.h"
#include "maps.h"

#define DNS_PORT   53
#define DNS_HEADER 12
#define STUB       0x3500007fU /* 127.0.0.53 as a little-endian number; 127.0.0.54 is next to it */
#define STUB_PROXY 0x3600007fU

static __always_inline void fill_dns(struct dns_event *e, u64 sk, u32 seq, u32 len, u32 flags)
{
	__builtin_memset(&e->task, 0, sizeof(e->task));
	if (!(flags & DNS_RECEIVED)) {
		u64 thread = read_task_key();
		u32 pid = thread >> 32;

		read_task(&e->task);
		e->task.netns = read_sock_netns(sk);
		if (lookup_by_thread.lookup(&thread))
			flags |= DNS_INSIDE;
		if (dns_server_by_pid.lookup(&pid))
			flags |= DNS_SERVER;
	}
	e->header.kind = EVENT_DNS;
	e->header.size = __builtin_offsetof(struct dns_event, data) + len;
	e->sk = sk;
	e->ts_ns = bpf_ktime_get_ns();
	e->len = len;
	e->flags = flags;
	e->seq = seq;
}

/* Whether the server is systemd-resolved's stub. */
static __always_inline bool is_stub(struct __sk_buff *skb, bool rx)
{
	u32 server = 0;
	u8 first = 0;

	if (bpf_skb_load_bytes(skb, 0, &first, 1) || first >> 4 != 4 ||
	    bpf_skb_load_bytes(skb, rx ? 12 : 16, &server, sizeof(server)))
		return 0;
	return server == STUB || server == STUB_PROXY;
}

static __always_inline void note_lost_dns(u32 flags)
{
	if (!(flags & DNS_RECEIVED))
		note_lost_lookup(read_task_key() >> 32);
}

/* Hand over len bytes at offset in this packet, or as many as fit. */
static __always_inline void submit_dns(struct __sk_buff *skb, u64 sk, u32 seq, u32 offset, u32 len,
				       u32 flags)
{
	const u32 fixed = __builtin_offsetof(struct dns_event, data);
	struct dns_event *e;
	u32 less_one, size;
	long failed;

	if (!len)
		return;
	if (is_stub(skb, flags & DNS_RECEIVED))
		flags |= DNS_STUB;
	if (len > DNS_MAX) {
		len = DNS_MAX;
		flags |= DNS_CUT;
	}
	less_one = len - 1;
	if (len <= DNS_SMALL) {
		size = fixed + DNS_SMALL;
		e = reserve(fixed + DNS_SMALL, SHARE_DNS, DNS_MOST, COUNT_LOST_DNS);
		if (!e) {
			note_lost_dns(flags);
			return;
		}
		fill_dns(e, sk, seq, len, flags);
		BOUND(less_one, DNS_SMALL - 1);
		failed = bpf_skb_load_bytes(skb, offset, e->data, less_one + 1);
	} else {
		size = sizeof(*e);
		e = reserve(sizeof(*e), SHARE_DNS, DNS_MOST, COUNT_LOST_DNS);
		if (!e) {
			note_lost_dns(flags);
			return;
		}
		fill_dns(e, sk, seq, len, flags);
		BOUND(less_one, DNS_MAX - 1);
		failed = bpf_skb_load_bytes(skb, offset, e->data, less_one + 1);
	}
	if (failed)
		e->len = 0;
	events.ringbuf_submit(e, share_wakeup(size, SHARE_DNS, DNS_MOST));
}

/* A datagram from one port to another: payload of len bytes at offset. */
static __always_inline void dns_datagram(struct __sk_buff *skb, u64 sk, u16 sport, u16 dport,
					 u32 offset, u32 len, bool rx)
{
	if (len < DNS_HEADER)
		return;
	if (!rx && sport == DNS_PORT) {
		u32 pid = read_task_key() >> 32;
		u8 one = 1;

		dns_server_by_pid.update(&pid, &one);
	}
	if ((rx ? sport : dport) == DNS_PORT)
		submit_dns(skb, sk, 0, offset, len, rx ? DNS_RECEIVED : 0);
}
