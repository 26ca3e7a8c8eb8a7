/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * A TLS library's handshake calls: who, and from when. Non-blocking clients
 * call many times. packet.bpf.c joins the object to its socket when the
 * ClientHello leaves. Where every way out of the function is an instruction
 * that returns, those are probed, and tell when the handshake succeeded;
 * OpenSSL's ends in a jump, and the wire tells.
 */
#include "event.h"
#include "kernel_fields.h"
#include "maps.h"

static __always_inline int handshake_enter(struct pt_regs *ctx, u32 library)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct handshake_call call = {};
	struct handshake_key key = {};
	struct handshake *h;

	call.ssl = PT_REGS_PARM1(ctx);
	call.enter_ns = bpf_ktime_get_ns();
	call.stack = entry_stack(ctx);
	call.library = library;
	key.ssl = call.ssl;
	key.pid = thread >> 32;
	h = handshake_by_object.lookup(&key);
	if (h) {
		h->calls++;
	} else {
		struct handshake fresh = {.first_ns = call.enter_ns, .calls = 1};

		handshake_by_object.update(&key, &fresh);
	}
	handshake_by_thread.update(&thread, &call);
	return 0;
}

static __always_inline int handshake_return(struct pt_regs *ctx, s32 success)
{
	u64 now = bpf_ktime_get_ns();
	u64 thread = bpf_get_current_pid_tgid();
	struct handshake_call *call = handshake_by_thread.lookup(&thread);
	struct handshake_key key = {};
	s32 ret = PT_REGS_RC(ctx);
	struct conn_event *c = 0;
	struct handshake *h;
	u64 sk;

	/* of another call: a coroutine's, or one whose entry was not seen */
	if (!call || call->stack != PT_REGS_SP(ctx))
		return 0;
	call->exit_ns = now;
	key.ssl = call->ssl;
	key.pid = thread >> 32;
	h = handshake_by_object.lookup(&key);
	if (!h)
		return 0;
	h->ret = ret;
	h->returned++;
	sk = h->sk;
	if (sk)
		c = conn_by_sk.lookup(&sk);
	if (c && c->ssl == call->ssl && c->task.pid == key.pid && !c->ssl_done_ns) {
		c->ssl_calls = h->calls;
		c->ssl_ret = ret;
		c->flags |= CONN_SSL_RETURNED;
		if (ret == success)
			c->ssl_done_ns = now;
	}
	if (ret == success)
		handshake_by_object.delete(&key);
	return 0;
}

int openssl_enter(struct pt_regs *ctx)
{
	return handshake_enter(ctx, LIB_OPENSSL);
}

int openssl_return(struct pt_regs *ctx)
{
	return handshake_return(ctx, 1);
}

int gnutls_enter(struct pt_regs *ctx)
{
	return handshake_enter(ctx, LIB_GNUTLS);
}

int gnutls_return(struct pt_regs *ctx)
{
	return handshake_return(ctx, 0);
}

int nss_enter(struct pt_regs *ctx)
{
	return handshake_enter(ctx, LIB_NSS);
}

int nss_return(struct pt_regs *ctx)
{
	return handshake_return(ctx, 0);
}

int wolfssl_enter(struct pt_regs *ctx)
{
	return handshake_enter(ctx, LIB_WOLFSSL);
}

int wolfssl_return(struct pt_regs *ctx)
{
	return handshake_return(ctx, 1);
}

int mbedtls_enter(struct pt_regs *ctx)
{
	return handshake_enter(ctx, LIB_MBEDTLS);
}

int mbedtls_return(struct pt_regs *ctx)
{
	return handshake_return(ctx, 0);
}
