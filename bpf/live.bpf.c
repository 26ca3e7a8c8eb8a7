/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The TCP figures of open connections, when user space asks. Attached to
 * nothing: monitor/kernel/live.py runs it (BPF_PROG_TEST_RUN), LIVE_KEYS
 * sockets at a time.
 */
#include "event.h"
#include "kernel_fields.h"
#include "maps.h"

/*
 * The socket may be freed, and its memory be another socket's, while we look:
 * the cookie is read before and after, and user space compares it. The memory
 * of one that is gone keeps its cookie for a while, but no references.
 */
static __always_inline void read_live(u32 slot, u64 sk)
{
	struct live_figures *live = live_by_slot.lookup(&slot);
	u64 before, again;
	u16 protocol;

	if (!live)
		return;
	before = READ_FIELD(u64, sk, OFF_sock_common_skc_cookie);
	live->bytes_sent = READ_FIELD(u64, sk, OFF_tcp_sock_bytes_sent);
	again = READ_FIELD(u64, sk, OFF_tcp_sock_bytes_retrans);
	live->bytes_sent -= again;
	live->bytes_received = READ_FIELD(u64, sk, OFF_tcp_sock_bytes_received);
	live->rtt_us = READ_FIELD(u32, sk, OFF_tcp_sock_srtt_us) >> 3;
	live->rttvar_us = READ_FIELD(u32, sk, OFF_tcp_sock_mdev_us) >> 2;
	live->retransmits = READ_FIELD(u32, sk, OFF_tcp_sock_total_retrans);
	protocol = READ_FIELD(u16, sk, OFF_sock_sk_protocol);
	live->protocol = protocol == IPPROTO_TCP || protocol == IPPROTO_UDP ? protocol : 0;
	live->tcp_state = READ_FIELD(u8, sk, OFF_sock_common_skc_state);
	live->refs = READ_FIELD(u32, sk, OFF_sock_common_skc_refcnt);
	live->cookie = READ_FIELD(u64, sk, OFF_sock_common_skc_cookie);
	if (live->cookie != before)
		live->cookie = 0;
}

/* args: the first slot to write, then LIVE_KEYS addresses of sockets */
int live_read(struct bpf_raw_tracepoint_args *ctx)
{
	u32 slot = ctx->args[0];

#pragma unroll
	for (int i = 0; i < LIVE_KEYS; i++)
		read_live(slot + i, ctx->args[i + 1]);
	return 0;
}

/*
 * Delete one entry of conn_by_sk, unless its key is another connection's by
 * now. args: the key, and its connect_ns. 1 = deleted.
 */
int conn_forget(struct bpf_raw_tracepoint_args *ctx)
{
	u64 sk = ctx->args[0];
	struct conn_event *c = conn_by_sk.lookup(&sk);

	if (!c || c->connect_ns != ctx->args[1])
		return 0;
	for (int i = 0; i < MAP_TRIES; i++) {
		long failed = conn_by_sk.delete(&sk);

		if (!failed)
			return 1;
		if (failed == -ENOENT)
			return 0;
	}
	return 0;
}
