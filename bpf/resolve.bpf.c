/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * getaddrinfo(), and gethostbyname() with its kin: what was asked, and the
 * whole answer list when it returns. The caller's own call, so it is right
 * whatever resolves underneath.
 *
 * A return is seen by a probe on the returning instruction. There the stack
 * pointer is what it was at entry, which tells this call's return from any
 * other's: of a coroutine, a signal handler, a call that a jump left behind.
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

/* struct hostent on 64-bit glibc and musl */
struct user_hostent {
	u64 name;
	u64 aliases;
	s32 family;
	s32 length;
	u64 addresses; /* char **, ended by NULL */
};

#define MOST_NESTED_NS    60000000000ULL /* a lookup that makes another lookup is over by then */
#define H_ERANGE          34 /* gethostbyname_r() asks for more room and will be called again */
#define HOSTENT_ADDRESSES 64 /* walked; the functions themselves give at most 48 */

/*
 * Copy the list, an address once where it stands in a row (one entry for each
 * socket type). Returns 1 if more than max were there.
 */
static __always_inline int copy_answers(struct lookup_event *e, u64 result, u32 max)
{
	const int walked = max == ANSWER_SMALL ? LIST_WALKED_SMALL : LIST_WALKED;
	u64 node = 0;

	if (read_user(&node, sizeof(node), (void *)result))
		e->flags |= LOOKUP_UNREADABLE;
	for (int i = 0; i < walked; i++) {
		struct user_addrinfo info = {};
		struct answer a = {};
		u32 n = e->answer_len;
		u8 sa[28] = {};

		if (!node)
			return 0;
		if (read_user(&info, sizeof(info), (void *)node)) {
			e->flags |= LOOKUP_UNREADABLE;
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
	e->flags |= LOOKUP_LONG;
	return 1;
}

/* The same of a struct hostent. */
static __always_inline int copy_hostent(struct lookup_event *e, u64 result, u32 max)
{
	struct user_hostent host = {};
	u64 node = 0;

	if (read_user(&node, sizeof(node), (void *)result) ||
	    read_user(&host, sizeof(host), (void *)node)) {
		e->flags |= LOOKUP_UNREADABLE;
		return 0;
	}
	if (host.family != AF_INET && host.family != AF_INET6)
		return 0;
	for (int i = 0; i < HOSTENT_ADDRESSES; i++) {
		u32 n = e->answer_len;
		struct answer a = {};
		u64 address = 0;

		if (read_user(&address, sizeof(address), (u64 *)host.addresses + i)) {
			e->flags |= LOOKUP_UNREADABLE;
			return 0;
		}
		if (!address)
			return 0;
		a.family = host.family;
		read_user(a.addr, host.family == AF_INET ? 4 : 16, (void *)address);
		e->answer_total++;
		if (n >= max)
			return 1;
		e->answer_len = n + 1;
		BOUND(n, max - 1);
		e->answers[n] = a;
	}
	e->flags |= LOOKUP_LONG;
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
	if (ret == 0) {
		int more = call->function == GETADDRINFO ? copy_answers(e, call->result, max)
							 : copy_hostent(e, call->result, max);

		if (more && max < ANSWER_MAX)
			return 1;
	}
	e->header.size = __builtin_offsetof(struct lookup_event, answers) +
			 (u32)e->answer_len * sizeof(struct answer);
	return 0;
}

static __always_inline void forget_lookup(u64 thread)
{
	for (int i = 0; i < MAP_TRIES; i++) {
		long failed = lookup_by_thread.delete(&thread);

		if (!failed || failed == -ENOENT)
			return;
	}
}

/* Submit what the call found, and forget it. ret: an EAI_ code, 0 for success. */
static __always_inline void return_lookup(u64 thread, struct lookup_call *call, s32 ret)
{
	const u32 fixed = __builtin_offsetof(struct lookup_event, answers);
	u64 now = bpf_ktime_get_ns();
	struct lookup_event *e;

	e = try_reserve(fixed + ANSWER_SMALL * sizeof(struct answer), SHARE_LOOKUP, LOOKUP_MOST);
	if (e) {
		if (!fill_lookup(e, call, now, ret, ANSWER_SMALL)) {
			events.ringbuf_submit(e,
					      share_wakeup(sizeof(*e), SHARE_LOOKUP, LOOKUP_MOST));
			goto done;
		}
		events.ringbuf_discard(e, BPF_RB_NO_WAKEUP);
	}
	/* a long list, or a reserve that found the ring's lock taken */
	e = reserve(sizeof(*e), SHARE_LOOKUP, LOOKUP_MOST, COUNT_LOST_LOOKUP);
	if (e) {
		fill_lookup(e, call, now, ret, ANSWER_MAX);
		events.ringbuf_submit(e, share_wakeup(sizeof(*e), SHARE_LOOKUP, LOOKUP_MOST));
	} else {
		note_lost_lookup(thread >> 32);
	}
done:
	forget_lookup(thread);
}

/* The call will not return: its thread ends, or has left it by a jump (flag LOOKUP_LEFT). */
static __always_inline void give_up_lookup(u64 thread, struct lookup_call *call, u32 flags)
{
	const u32 fixed = __builtin_offsetof(struct lookup_event, answers);
	u64 now = bpf_ktime_get_ns();
	struct lookup_event *e;

	e = reserve(fixed, SHARE_LOOKUP, LOOKUP_MOST, COUNT_LOST_LOOKUP);
	if (e) {
		fill_lookup(e, call, now, LOOKUP_GIVEN_UP, 0);
		e->flags = flags;
		events.ringbuf_submit(e, share_wakeup(fixed, SHARE_LOOKUP, LOOKUP_MOST));
	} else {
		note_lost_lookup(thread >> 32);
	}
	forget_lookup(thread);
}

/* The address that a function just entered will return to. */
static __always_inline u64 read_caller(struct pt_regs *ctx, u64 stack)
{
#if defined(__aarch64__)
	return ctx->regs[30];
#else
	u64 caller = 0;

	read_user(&caller, sizeof(caller), (void *)stack);
	return caller;
#endif
}

/*
 * Whether a thread that enters a function is still inside an earlier call:
 * deeper on the same stack, and the earlier call's return address, where it
 * lies on the stack, is still in its place.
 */
static __always_inline bool is_inside(struct lookup_call *call, u64 stack, u64 now)
{
	u64 caller = call->caller;

	if (stack >= call->stack || now - call->start_ns > MOST_NESTED_NS)
		return 0;
#if !defined(__aarch64__)
	read_user(&caller, sizeof(caller), (void *)call->stack);
#endif
	return caller == call->caller;
}

/* Note a call; 0 if it is one that another lookup function makes itself. */
static __always_inline struct lookup_call *enter_lookup(struct pt_regs *ctx, u64 name, u32 function)
{
	u64 thread = bpf_get_current_pid_tgid();
	u64 now = bpf_ktime_get_ns();
	u64 stack = entry_stack(ctx);
	struct lookup_call *blank, *call;
	int zero = 0;

	call = lookup_by_thread.lookup(&thread);
	if (call && is_inside(call, stack, now))
		return 0;
	if (call)
		give_up_lookup(thread, call, LOOKUP_LEFT);
	blank = blank_lookup.lookup(&zero);
	if (!blank)
		return 0;
	if (lookup_by_thread.update(&thread, blank)) {
		count(COUNT_LOOKUP_FULL);
		note_lost_lookup(thread >> 32);
		return 0;
	}
	call = lookup_by_thread.lookup(&thread);
	if (!call)
		return 0;
	call->start_ns = now;
	call->stack = stack;
	call->caller = read_caller(ctx, stack);
	call->function = function;
	read_user_str(call->name, sizeof(call->name), (void *)name);
	return call;
}

int getaddrinfo_enter(struct pt_regs *ctx)
{
	u64 node = PT_REGS_PARM1(ctx);
	u64 service = PT_REGS_PARM2(ctx);
	u64 hints = PT_REGS_PARM3(ctx);
	struct lookup_call *call;

	if (!node)
		return 0; /* a wildcard for bind(), no name */
	call = enter_lookup(ctx, node, GETADDRINFO);
	if (!call)
		return 0;
	call->result = PT_REGS_PARM4(ctx);
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

int getaddrinfo_return(struct pt_regs *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct lookup_call *call = lookup_by_thread.lookup(&thread);

	if (call && call->function == GETADDRINFO && call->stack == PT_REGS_SP(ctx))
		return_lookup(thread, call, PT_REGS_RC(ctx));
	return 0;
}

int hostent_enter(struct pt_regs *ctx)
{
	struct lookup_call *call = enter_lookup(ctx, PT_REGS_PARM1(ctx), GETHOSTBYNAME);

	if (!call)
		return 0;
	call->result = PT_REGS_PARM5(ctx);
	call->h_errno = PT_REGS_PARM6(ctx);
	return 0;
}

int hostent2_enter(struct pt_regs *ctx)
{
	struct lookup_call *call = enter_lookup(ctx, PT_REGS_PARM1(ctx), GETHOSTBYNAME2);

	if (!call)
		return 0;
	call->hint_family = PT_REGS_PARM2(ctx);
	call->result = PT_REGS_PARM6(ctx);
#ifdef __x86_64__
	/* the seventh argument, above the return address */
	read_user(&call->h_errno, sizeof(call->h_errno), (void *)(call->stack + 8));
#elif defined(__aarch64__)
	call->h_errno = ctx->regs[6];
#endif
	return 0;
}

static __always_inline int return_hostent(struct pt_regs *ctx, u32 function)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct lookup_call *call = lookup_by_thread.lookup(&thread);
	s32 h_errno = 0, ret = 0;
	u64 host = 0;

	if (!call || call->function != function || call->stack != PT_REGS_SP(ctx))
		return 0;
	if ((u32)PT_REGS_RC(ctx) == H_ERANGE) {
		lookup_by_thread.delete(&thread);
		return 0;
	}
	read_user(&host, sizeof(host), (void *)call->result);
	if (!host) {
		read_user(&h_errno, sizeof(h_errno), (void *)call->h_errno);
		/* HOST_NOT_FOUND, TRY_AGAIN, NO_RECOVERY, NO_DATA in getaddrinfo()'s words */
		ret = h_errno >= 1 && h_errno <= 4 ? -1 - h_errno : -11 /* EAI_SYSTEM */;
	}
	return_lookup(thread, call, ret);
	return 0;
}

int hostent_return(struct pt_regs *ctx)
{
	return return_hostent(ctx, GETHOSTBYNAME);
}

int hostent2_return(struct pt_regs *ctx)
{
	return return_hostent(ctx, GETHOSTBYNAME2);
}
