/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * What one process's TLS library reads and writes in the clear, and which
 * socket that is. Loaded and attached only while somebody asks for it, to
 * that process alone: a probe on every read and write is what nobody pays
 * for otherwise.
 */
#include "event.h"
#include "kernel_fields.h"
#include "maps.h"

#define PLAIN_TURN     64          /* bytes kept of each later turn's begin */
#define RECORD_DATA    23          /* TLS application data */
#define RECORD_MOST    16384       /* plaintext of one record */
#define RECORD_GROWTH  88          /* what encryption adds to it, at most (CBC with SHA-384) */
#define RECORDS_BEFORE 4           /* record starts looked at in one packet */
#define DEEP_MEMORY_NS 50000000ULL /* from a library call to its bytes leaving */

static __always_inline int deep_enter(struct pt_regs *ctx, u32 received, bool by_pointer)
{
	u64 thread = bpf_get_current_pid_tgid();
	u32 pid = thread >> 32;
	struct deep_target *target = deep_by_pid.lookup(&pid);
	struct deep_call_key key = {};
	struct deep_call call = {};
	struct deep_write *outer;

	if (!target)
		return 0;
	__sync_fetch_and_add(&target->calls, 1);
	key.thread = thread;
	key.stack = entry_stack(ctx);
	call.object = PT_REGS_PARM1(ctx);
	outer = received ? 0 : deep_by_thread.lookup(&thread);
	if (outer && !outer->exit_ns && outer->object == call.object && key.stack < outer->stack)
		return 0; /* one such function calls another */
	call.buffer = PT_REGS_PARM2(ctx);
	if (by_pointer)
		call.size_at = PT_REGS_PARM4(ctx);
	call.received = received;
	call.enter_ns = bpf_ktime_get_ns();
	deep_by_call.update(&key, &call);
	if (!received) {
		struct deep_write write = {};

		write.object = call.object;
		write.size = PT_REGS_PARM3(ctx);
		write.stack = key.stack;
		deep_by_thread.update(&thread, &write);
	}
	return 0;
}

int deep_write_enter(struct pt_regs *ctx)
{
	return deep_enter(ctx, 0, 0);
}

int deep_write_ex_enter(struct pt_regs *ctx)
{
	return deep_enter(ctx, 0, 1);
}

int deep_read_enter(struct pt_regs *ctx)
{
	return deep_enter(ctx, 1, 0);
}

int deep_read_ex_enter(struct pt_regs *ctx)
{
	return deep_enter(ctx, 1, 1);
}

/* The object ends; its memory may be another's next. */
int deep_free_enter(struct pt_regs *ctx)
{
	struct handshake_key key = {};

	key.ssl = PT_REGS_PARM1(ctx);
	key.pid = bpf_get_current_pid_tgid() >> 32;
	deep_by_object.delete(&key);
	return 0;
}

static __always_inline void fill_plain(struct plain_event *e, struct deep_call *call,
				       struct deep_talk *talk, u32 pid, u32 total, u32 n, u64 now)
{
	e->header.kind = EVENT_PLAIN;
	e->header.size = __builtin_offsetof(struct plain_event, data) + n;
	e->sk = talk->sk;
	e->connect_ns = talk->connect_ns;
	e->object = call->object;
	e->enter_ns = call->enter_ns;
	e->exit_ns = now;
	e->offset = call->received ? talk->received : talk->sent;
	e->pid = pid;
	e->total = total;
	e->len = n;
	e->received = call->received;
	e->turned = talk->last_dir != call->received + 1;
	e->pad = 0;
}

/* n (not 0) bytes of what the call moved. */
static __always_inline void submit_plain(struct deep_call *call, struct deep_talk *talk, u32 pid,
					 u32 total, u32 n, u64 now)
{
	const u32 fixed = __builtin_offsetof(struct plain_event, data);
	u32 less_one = n - 1, size;
	struct plain_event *e;
	long failed;

	if (n <= PLAIN_SMALL) {
		size = fixed + PLAIN_SMALL;
		e = reserve(fixed + PLAIN_SMALL, SHARE_PLAIN, PLAIN_MOST, COUNT_LOST_PLAIN);
		if (!e)
			return;
		fill_plain(e, call, talk, pid, total, n, now);
		BOUND(less_one, PLAIN_SMALL - 1);
		failed = read_user(e->data, less_one + 1, (void *)call->buffer);
	} else {
		size = sizeof(*e);
		e = reserve(sizeof(*e), SHARE_PLAIN, PLAIN_MOST, COUNT_LOST_PLAIN);
		if (!e)
			return;
		fill_plain(e, call, talk, pid, total, n, now);
		BOUND(less_one, PLAIN_MAX - 1);
		failed = read_user(e->data, less_one + 1, (void *)call->buffer);
	}
	if (failed)
		e->len = 0;
	events.ringbuf_submit(e, share_wakeup(size, SHARE_PLAIN, PLAIN_MOST));
}

int deep_return(struct pt_regs *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct deep_call_key at = {};
	struct handshake_key key = {};
	u64 now = bpf_ktime_get_ns();
	struct deep_talk fresh = {};
	struct deep_write *write;
	struct deep_talk *talk;
	struct deep_call *found, call;
	s32 moved = PT_REGS_RC(ctx);
	u64 size = 0, before;
	u32 n;

	at.thread = thread;
	at.stack = PT_REGS_SP(ctx); /* as at entry: the returning instruction is probed */
	found = deep_by_call.lookup(&at);
	if (!found)
		return 0;
	call = *found;
	deep_by_call.delete(&at);
	write = deep_by_thread.lookup(&thread);
	if (write && !call.received && write->object == call.object)
		write->exit_ns = now;
	if (moved <= 0)
		return 0; /* failed, or to be called again */
	if (!call.size_at)
		size = moved;
	else if (read_user(&size, sizeof(size), (void *)call.size_at))
		return 0;
	if (!size || size > 0x7fffffff)
		return 0;
	key.ssl = call.object;
	key.pid = thread >> 32;
	talk = deep_by_object.lookup(&key);
	if (!talk) {
		deep_by_object.update(&key, &fresh);
		talk = deep_by_object.lookup(&key);
		if (!talk)
			return 0;
	}
	if (talk->last_dir != call.received + 1)
		talk->given = 0;
	before = call.received ? talk->received : talk->sent;
	n = before < PLAIN_MAX         ? PLAIN_MAX
	    : talk->given < PLAIN_TURN ? PLAIN_TURN - talk->given
				       : 0;
	if (n > size)
		n = size;
	if (n)
		submit_plain(&call, talk, key.pid, size, n, now);
	talk->given += n;
	if (call.received)
		talk->received += size;
	else
		talk->sent += size;
	talk->last_dir = call.received + 1;
	return 0;
}

/*
 * The socket whose next bytes are a record of the size that the thread just
 * wrote, inside the call or right after it (memory BIO), is the object's.
 */
int deep_egress(struct __sk_buff *skb)
{
	u64 thread = read_task_key();
	u32 pid = thread >> 32;
	u64 sk = (u64)skb->sk;
	struct handshake_key key = {};
	struct tcp_part part = {};
	struct deep_talk fresh = {};
	struct deep_write *write;
	struct deep_talk *talk;
	struct conn_event *c;
	u32 expected, at = 0;
	bool found = 0;
	u8 h[5];

	if (!sk || !deep_by_pid.lookup(&pid))
		return 1;
	write = deep_by_thread.lookup(&thread);
	if (!write || (write->exit_ns && bpf_ktime_get_ns() - write->exit_ns > DEEP_MEMORY_NS))
		return 1;
	key.ssl = write->object;
	key.pid = pid;
	talk = deep_by_object.lookup(&key);
	if (talk && talk->sk)
		return 1;
	c = conn_by_sk.lookup(&sk);
	if (!c || c->flags & CONN_UDP)
		return 1;
	if (!parse_packet(skb, &part))
		return 1;
	expected = write->size > RECORD_MOST ? RECORD_MOST : write->size;
	/* the end of the handshake may leave in the same packet, before it */
	for (int i = 0; i < RECORDS_BEFORE; i++) {
		u32 len;

		if (at + sizeof(h) > part.len ||
		    bpf_skb_load_bytes(skb, part.offset + at, h, sizeof(h)) || h[1] != 3)
			return 1;
		len = (u32)h[3] << 8 | h[4];
		if (h[0] == RECORD_DATA && len > expected && len <= expected + RECORD_GROWTH) {
			found = 1;
			break;
		}
		at += sizeof(h) + len;
	}
	if (!found)
		return 1;
	if (!talk) {
		fresh.sk = sk;
		fresh.connect_ns = c->connect_ns;
		deep_by_object.update(&key, &fresh);
	} else {
		talk->sk = sk;
		talk->connect_ns = c->connect_ns;
	}
	return 1;
}
