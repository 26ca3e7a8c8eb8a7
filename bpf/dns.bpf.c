/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * DNS messages on UDP port 53, whole. They name a connection where nothing
 * better is known: the resolver's own process, and a program whose C library
 * was not probed yet when it asked. Parsed in user space.
 */
#include "event.h"
#include "kernel_fields.h"
#include "maps.h"

#define IPPROTO_UDP 17
#define DNS_PORT    53
#define UDP_HEADER  8
#define DNS_HEADER  12

static __always_inline void on_udp(struct __sk_buff *skb, u64 sk, bool rx)
{
	struct dns_event *e;
	u32 offset, len;
	u8 ip[8];
	u8 udp[8];
	u8 next;
	u16 port;

	if (bpf_skb_load_bytes(skb, 0, ip, sizeof(ip)))
		return;
	if (ip[0] >> 4 == 4) {
		offset = (ip[0] & 15) * 4;
		if (bpf_skb_load_bytes(skb, 9, &next, 1))
			return;
	} else {
		offset = 40;
		next = ip[6];
	}
	if (next != IPPROTO_UDP || bpf_skb_load_bytes(skb, offset, udp, sizeof(udp)))
		return;
	port = rx ? (u16)udp[0] << 8 | udp[1] : (u16)udp[2] << 8 | udp[3];
	offset += UDP_HEADER;
	if (port != DNS_PORT || skb->len < offset + DNS_HEADER)
		return;
	len = skb->len - offset;
	e = events.ringbuf_reserve(sizeof(*e));
	if (!e)
		e = events.ringbuf_reserve(sizeof(*e));
	if (!e) {
		count(COUNT_LOST_DNS);
		return;
	}
	__builtin_memset(&e->task, 0, sizeof(e->task));
	if (!rx)
		read_task(&e->task);
	e->header.kind = EVENT_DNS;
	e->sk = sk;
	e->ts_ns = bpf_ktime_get_ns();
	e->received = rx;
	e->cut = len > DNS_MAX;
	e->pad = 0;
	if (len > DNS_MAX)
		len = DNS_MAX;
	e->len = len;
	e->header.size = __builtin_offsetof(struct dns_event, data) + len;
	len -= 1;
	BOUND(len, DNS_MAX - 1);
	if (bpf_skb_load_bytes(skb, offset, e->data, len + 1))
		e->len = 0;
	events.ringbuf_submit(e, BPF_RB_NO_WAKEUP);
}
