/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * getaddrinfo(): what was asked, and the whole answer list when it returns.
 * The caller's own call, so it is right whatever resolves underneath.
 */
#include "event.h"
#include "kernel_fields.h"
#include "maps.h"

/*
 * List entries walked: up to three for an address, one for each socket type.
 * What is beyond is flagged. Each costs the verifier a millisecond at start.
 */
#define LIST_WALKED       256
#define LIST_WALKED_SMALL 32

/* struct addrinfo on 64-bit glibc and musl */
struct user_addrinfo {
	s32 flags;
	s32 family;
	s32 socktype;
	s32 protocol;
	u32 addrlen;
	u32 pad;
	u64 addr;
	u64 canonname;
	u64 next;
};

int getaddrinfo_enter(struct pt_regs *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	u64 node = PT_REGS_PARM1(ctx);
	u64 service = PT_REGS_PARM2(ctx);
	u64 hints = PT_REGS_PARM3(ctx);
	struct lookup_call *blank, *call;
	int zero = 0;

	if (!node)
		return 0; /* a wildcard for bind(), no name */
	blank = blank_lookup.lookup(&zero);
	if (!blank)
		return 0;
	if (lookup_by_thread.update(&thread, blank)) {
		count(COUNT_LOOKUP_FULL);
		return 0;
	}
	call = lookup_by_thread.lookup(&thread);
	if (!call)
		return 0;
	call->start_ns = bpf_ktime_get_ns();
	call->result = PT_REGS_PARM4(ctx);
	read_user_str(call->name, sizeof(call->name), (void *)node);
	if (service)
		read_user_str(call->service, sizeof(call->service), (void *)service);
	if (hints) {
		s32 head[2] = {};

		read_user(head, sizeof(head), (void *)hints);
		call->hint_flags = head[0];
		call->hint_family = head[1];
	}
	return 0;
}

/*
 * Copy the list, an address once where it stands in a row (one entry for each
 * socket type). Returns 1 if more than max were there.
 */
static __always_inline int copy_answers(struct lookup_event *e, u64 result, u32 max)
{
	const int walked = max == ANSWER_SMALL ? LIST_WALKED_SMALL : LIST_WALKED;
	u64 node = 0;

	if (read_user(&node, sizeof(node), (void *)result))
		e->flags |= 2;
	for (int i = 0; i < walked; i++) {
		struct user_addrinfo info = {};
		struct answer a = {};
		u32 n = e->answer_len;
		u8 sa[28] = {};

		if (!node)
			return 0;
		if (read_user(&info, sizeof(info), (void *)node)) {
			e->flags |= 2;
			return 0;
		}
		node = info.next;
		if (info.family != AF_INET && info.family != AF_INET6)
			continue;
		read_user(sa, info.family == AF_INET ? 16 : 28, (void *)info.addr);
		a.family = info.family;
		a.port = (u16)sa[2] << 8 | sa[3];
		if (info.family == AF_INET) {
			__builtin_memcpy(a.addr, sa + 4, 4);
		} else {
			__builtin_memcpy(a.addr, sa + 8, 16);
			a.scope_id = *(u32 *)(sa + 24);
		}
		if (n > 0) {
			u32 last = n - 1;

			BOUND(last, max - 1);
			u64 *x = (u64 *)&a, *y = (u64 *)&e->answers[last];

			if (x[0] == y[0] && x[1] == y[1] && x[2] == y[2])
				continue;
		}
		e->answer_total++;
		if (n >= max)
			return 1;
		e->answer_len = n + 1;
		BOUND(n, max - 1);
		e->answers[n] = a;
	}
	e->flags |= 1;
	return 1;
}

static __always_inline int fill_lookup(struct lookup_event *e, struct lookup_call *call, u64 now,
				       s32 ret, u32 max)
{
	__builtin_memset(&e->task, 0, sizeof(e->task));
	read_task(&e->task);
	e->task.netns = read_task_netns();
	e->header.kind = EVENT_LOOKUP;
	e->start_ns = call->start_ns;
	e->end_ns = now;
	e->ret = ret;
	e->hint_family = call->hint_family;
	e->hint_flags = call->hint_flags;
	e->answer_total = 0;
	e->answer_len = 0;
	e->flags = 0;
	__builtin_memcpy(e->name, call->name, sizeof(e->name));
	__builtin_memcpy(e->service, call->service, sizeof(e->service));
	if (ret == 0 && copy_answers(e, call->result, max) && max < ANSWER_MAX)
		return 1;
	e->header.size = __builtin_offsetof(struct lookup_event, answers) +
			 (u32)e->answer_len * sizeof(struct answer);
	return 0;
}

int getaddrinfo_return(struct pt_regs *ctx)
{
	const u32 fixed = __builtin_offsetof(struct lookup_event, answers);
	u64 now = bpf_ktime_get_ns();
	u64 thread = bpf_get_current_pid_tgid();
	struct lookup_call *call = lookup_by_thread.lookup(&thread);
	s32 ret = PT_REGS_RC(ctx);
	struct lookup_event *e;

	if (!call)
		return 0;
	e = events.ringbuf_reserve(fixed + ANSWER_SMALL * sizeof(struct answer));
	if (e) {
		if (!fill_lookup(e, call, now, ret, ANSWER_SMALL)) {
			events.ringbuf_submit(e, BPF_RB_NO_WAKEUP);
			goto done;
		}
		events.ringbuf_discard(e, BPF_RB_NO_WAKEUP);
	}
	/* a long list, or a reserve that found the ring's lock taken */
	e = events.ringbuf_reserve(sizeof(*e));
	if (e) {
		fill_lookup(e, call, now, ret, ANSWER_MAX);
		events.ringbuf_submit(e, BPF_RB_NO_WAKEUP);
	} else {
		count(COUNT_LOST_LOOKUP);
	}
done:
	lookup_by_thread.delete(&thread);
	return 0;
}
