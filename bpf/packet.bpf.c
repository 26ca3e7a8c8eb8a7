/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * What the packets of a known connection say: first bytes each way, turns,
 * TLS record headers while the connection is young, the hellos whole. Runs
 * for every packet of the host, so the common cases leave early; always
 * returns 1 (pass).
 */
#include "event.h"
#include "kernel_fields.h"
#include "maps.h"

#define TCP_FLAG_FIN     0x01
#define TCP_FLAG_SYN     0x02
#define TCP_FLAG_RST     0x04
#define RECORD_HEADER    5
#define HELLO_HEADER     9 /* of the record, and type and length of the message */
#define RECORD_ALERT     21
#define RECORD_HANDSHAKE 22
#define RECORD_DATA      23
#define MERGED_LEAST     1024 /* length of a record: session tickets are shorter */
#define MERGED_MOST      2048 /* 32 MB in records of 16 KB; then the log is left alone */
#define FOLDED_FROM      16   /* entries of a record log: handshake and first request come before */
#define SMALL_OVER       64   /* an acknowledgement is less, which says that this is HTTP/2 */
#define SMALL_FROM       24   /* entries: it has come by then */
#define UPDATE_LEN       13   /* of a WINDOW_UPDATE (RFC 9113 section 6.9) */
#define UPDATES_OVER     135  /* nine of them, and what TLS adds */
#define UPDATE_REMAINDERS                                                                          \
	(1 << 3 | 1 << 4 | 1 << 11) /* by UPDATE_LEN, of the 16, 17 or 24 bytes that TLS adds */
#define CLIENT_HELLO     1
#define SERVER_HELLO     2
#define RECORDS_WALKED   16           /* record starts looked at in one packet */
#define SERVER_HELLO_MAX 2048         /* with a post-quantum key share: 1.2 KB */
#define LATE_TLS_TURNS   16           /* STARTTLS and CONNECT come within so many turns */
#define LATE_TLS_BYTES   256          /* sent before a ClientHello with no answer between: MySQL */
#define HELLO_LEAST      40           /* bytes of a ClientHello's record: an alert has 2 */
#define HTTP2_BYTES      2048         /* of each direction, for the first request's status */
#define HTTP1_BYTES      1024         /* of a long request: fields before Host, and Host */
#define HTTP1_MORE       128          /* half of the log */
#define GOODBYE_MOST     100          /* GOAWAY and an alert take 63 to 85 */
#define DNS_TURNS        256          /* of a TCP connection to port 53, whose bytes are kept */
#define SSH_             0x2d485353U  /* "SSH-", little endian */
#define MEMORY_BIO_NS    50000000ULL  /* from a library call's return to its bytes leaving */
#define CALL_NS          500000000ULL /* from its begin, where its return is not seen */

struct tcp_part {
	u32 seq;
	u32 offset; /* of the payload, from the IP header */
	u32 len;    /* of the payload */
	u8 flags;
};

/* 0 = this is no TCP packet we understand. */
static __always_inline int parse_packet(struct __sk_buff *skb, struct tcp_part *part)
{
	u8 tcp[14];
	u8 next = 0;
	u32 offset = parse_ip(skb, &next);

	if (!offset || next != IPPROTO_TCP)
		return 0;
	if (bpf_skb_load_bytes(skb, offset, tcp, sizeof(tcp)))
		return 0;
	part->seq = (u32)tcp[4] << 24 | (u32)tcp[5] << 16 | (u32)tcp[6] << 8 | tcp[7];
	part->flags = tcp[13];
	part->offset = offset + (tcp[12] >> 4) * 4;
	part->len = skb->len > part->offset ? skb->len - part->offset : 0;
	return 1;
}

/*
 * Whether the newest library call of a thread that sends a ClientHello can be
 * what sent it: it is under way, or just over, and no other ClientHello was
 * its. A library that connects within its call may take long before it.
 */
static __always_inline bool may_have_sent(struct handshake_call *call, struct conn_event *c,
					  u64 now)
{
	if (call->exit_ns)
		return now - call->exit_ns <= MEMORY_BIO_NS;
	return c->connect_ns >= call->enter_ns || now - call->enter_ns <= CALL_NS;
}

/* The thread that sends a ClientHello is in its library's call, or just left it. */
static __always_inline void join_handshake(struct conn_event *c, u64 now)
{
	u64 thread = read_task_key();
	struct handshake_call *call = handshake_by_thread.lookup(&thread);
	struct handshake_key key = {};
	struct conn_event *other;
	struct handshake *h;
	u64 sk;

	if (!call || c->flags & CONN_INBOUND || !may_have_sent(call, c, now))
		return;
	key.ssl = call->ssl;
	key.pid = thread >> 32;
	h = handshake_by_object.lookup(&key);
	if (!h)
		return;
	sk = h->sk;
	if (sk != c->sk && call->joined)
		return;
	if (sk && sk != c->sk) {
		other = conn_by_sk.lookup(&sk);
		if (other && other->ssl == call->ssl)
			return; /* it is that connection's, which goes on */
		/* the object's memory serves another connection now */
		h->first_ns = call->enter_ns;
		h->calls = 1;
		h->returned = 0;
	} else if (!sk && h->first_ns < c->established_ns) {
		/* that was another object's, whose memory this one has */
		h->first_ns = call->enter_ns;
		h->calls = 1;
	}
	h->sk = c->sk;
	call->joined = 1;
	c->ssl = call->ssl;
	c->ssl_first_ns = h->first_ns;
	c->ssl_library = call->library;
	c->ssl_calls = h->calls;
	c->ssl_ret = h->ret;
	if (h->returned)
		c->flags |= CONN_SSL_RETURNED;
}

static __always_inline void detect_tls(struct __sk_buff *skb, struct tcp_part *part,
				       struct conn_event *c, u64 now)
{
	u8 h[16] = {};
	u32 less_one = (part->len < HELLO_HEADER ? part->len : HELLO_HEADER) - 1;
	u32 record, size;

	if (part->len < RECORD_HEADER)
		return;
	BOUND(less_one, 15);
	if (bpf_skb_load_bytes(skb, part->offset, h, less_one + 1))
		return;
	if (h[0] != RECORD_HANDSHAKE || h[1] != 3 || h[2] > 4)
		return;
	if (part->len > RECORD_HEADER && h[5] != CLIENT_HELLO)
		return;
	record = (u32)h[3] << 8 | h[4];
	size = record;
	if (part->len >= HELLO_HEADER)
		size = 4 + ((u32)h[6] << 16 | (u32)h[7] << 8 | h[8]);
	else if (record < HELLO_LEAST)
		return;
	if (size > record) /* in several records, whose headers come on top */
		size += (size >> 5) + 4 * RECORD_HEADER;
	size += RECORD_HEADER;
	if (c->flags & CONN_HTTP) { /* it asked a proxy for a tunnel; the log is TLS's now */
		c->flags &= ~CONN_HTTP;
		c->log_len = 0;
		c->log_merged = 0;
		c->log_last = 0;
	}
	c->flags |= CONN_TLS;
	if (c->last_dir)
		c->flags |= CONN_TLS_LATE;
	c->hello_ns = now;
	c->tx_record = part->seq;
	c->rx_record = c->rx_next;
	c->hello_tx_left = size > HELLO_MAX ? HELLO_MAX : size;
	join_handshake(c, now);
}

/* The sign bit of a number less one says whether it was 0; a compiler that knew would jump. */
static __always_inline u32 is_none(u32 value)
{
	SHROUD(value);
	return (value - 1) >> 31;
}

static __always_inline u32 reaches(u32 value, u32 least)
{
	u32 over = value - least;

	SHROUD(over);
	return ~(over >> 31) & 1;
}

static __always_inline u32 was_sent(struct tls_record *r)
{
	return is_none((r->type ^ RECORD_DATA) | (r->flags & RECORD_RX));
}

/* Whether the length may be that of a few of HTTP/2's WINDOW_UPDATEs. */
static __always_inline u32 may_reopen(u32 len)
{
	return UPDATE_REMAINDERS >> len % UPDATE_LEN & ~reaches(len, UPDATES_OVER) & 1;
}

static __always_inline u32 was_reopened(struct tls_record *r)
{
	return is_none((r->type ^ RECORD_DATA) | ((r->flags & RECORD_RX) ^ RECORD_RX)) &
	       may_reopen(r->len);
}

/*
 * A body that goes on would only fill the log. A large record like the one
 * before is written where the next one goes, and not counted. In the later
 * half of the log, what is sent after a record of a body, or with one, is one
 * with it (small ones later still); and so is a large one when in between came
 * nothing but what may be WINDOW_UPDATEs, which then are taken out. No branch, since the verifier
 * would follow both ways at each record.
 */
static __always_inline void log_record(struct conn_event *c, u8 type, u16 len, bool first, bool rx,
				       u64 now)
{
	u32 i = c->log_len, i1 = i - 1, i2 = i - 2, i3 = i - 3;
	u64 at_us = (now - c->connect_ns) / 1000;
	u32 data = is_none(type ^ RECORD_DATA);
	u32 large = data & reaches(len, MERGED_LEAST);
	u32 like = (len << 1 | rx) & -large;
	u32 again = large & is_none(like ^ c->log_last);
	u32 late = data & reaches(i, FOLDED_FROM);
	u32 small = (reaches(len, SMALL_OVER) ^ 1);
	u32 sent = late & (rx ^ 1);
	struct tls_record *r1, *r2, *r3;
	u32 joins, large1, dropped1, dropped2;

	if (i >= RECORD_LOG_MAX)
		return;
	i &= RECORD_LOG_MAX - 1;
	BOUND(i1, RECORD_LOG_MAX - 1);
	BOUND(i2, RECORD_LOG_MAX - 1);
	BOUND(i3, RECORD_LOG_MAX - 1);
	r1 = &c->log[i1];
	r2 = &c->log[i2];
	r3 = &c->log[i3];
	large1 = reaches(r1->len, MERGED_LEAST);
	small |= reaches(r1->len, SMALL_OVER) ^ 1;
	joins = sent & was_sent(r1) & (large | large1) & (small ^ 1 | reaches(i, SMALL_FROM));
	dropped1 = sent & large & was_reopened(r1) & was_sent(r2) & reaches(r2->len, MERGED_LEAST);
	dropped2 = joins & (large1 ^ 1) & was_reopened(r2) & was_sent(r3) &
		   reaches(r3->len, MERGED_LEAST);
	again |= joins | dropped1 | (late & rx & was_reopened(r1) & is_none(len ^ r1->len));
	r1->len += (len - r1->len) & -(joins & reaches(len, r1->len));
	c->flags |= CONN_FOLDED & -(dropped1 | dropped2);
	c->log_last = like;
	c->log_merged += again;
	c->log[i].at_us = at_us > 0xffffffffULL ? 0xffffffff : at_us;
	c->log[i].len = len;
	c->log[i].type = type;
	c->log[i].flags = (rx ? RECORD_RX : 0) | (first ? RECORD_FIRST : 0);
	c->log_len = i + 1 - again - dropped1 - 2 * dropped2;
}

/* HTTP/2's preface opens the connection (RFC 9113 section 3.4). */
static __always_inline void detect_http2(struct conn_event *c)
{
	u64 *head = (u64 *)c->tx_head;

	if (c->tx_head_len < 24 || head[0] != 0x5448202a20495250ULL /* "PRI * HT", little endian */)
		return;
	c->flags |= CONN_H2;
	c->hello_tx_left = HTTP2_BYTES;
	c->hello_rx_left = HTTP2_BYTES;
}

/* Little endian. No others: what follows in other protocols may be a password. */
static __always_inline bool is_method(u32 start)
{
	return start == 0x20544547U /* "GET " */ || start == 0x54534f50U /* POST */ ||
	       start == 0x44414548U /* HEAD */ || start == 0x20545550U /* "PUT " */ ||
	       start == 0x454c4544U /* DELETE */ || start == 0x4954504fU /* OPTIONS */ ||
	       start == 0x43544150U /* PATCH */ || start == 0x504f5250U /* PROPFIND */ ||
	       start == 0x4f504552U /* REPORT */ || start == 0x53425553U /* SUBSCRIBE */;
}

/*
 * Of a plain connection that begins with an HTTP request: whom it asks for
 * stands in its head. The TLS record log has no other use there and room for
 * most heads; a long packet's is handed over. before: bytes of tx_head that
 * came in earlier packets.
 */
static __always_inline void detect_http1(struct __sk_buff *skb, struct tcp_part *part,
					 struct conn_event *c, u32 before)
{
	u32 less_one = part->len - 1;

	if (c->tx_head_len < HEAD_SHORT || !is_method(*(u32 *)c->tx_head))
		return;
	c->flags |= CONN_HTTP;
	c->log_last = before;
	if (part->len > sizeof(c->log)) {
		c->hello_tx_left = HTTP1_BYTES;
		return;
	}
	BOUND(less_one, sizeof(c->log) - 1);
	if (bpf_skb_load_bytes(skb, part->offset, c->log, less_one + 1))
		return;
	c->log_merged = less_one + 1;
	c->log_len = (less_one + 8) / 8;
}

/* More of a head that came in pieces: half the log's room, so that the verifier sees it fit. */
static __always_inline void continue_http1(struct __sk_buff *skb, struct tcp_part *part,
					   struct conn_event *c)
{
	u32 have = c->log_merged;
	u32 less_one = (part->len > HTTP1_MORE ? HTTP1_MORE : part->len) - 1;

	if (have >= HTTP1_MORE || !have)
		return;
	BOUND(have, HTTP1_MORE - 1);
	BOUND(less_one, HTTP1_MORE - 1);
	if (bpf_skb_load_bytes(skb, part->offset, (u8 *)c->log + have, less_one + 1))
		return;
	have += less_one + 1;
	c->log_merged = have;
	c->log_len = (have + 7) / 8;
}

/* Whether TLS records of this connection are still noted. */
static __always_inline bool is_logging(struct conn_event *c)
{
	return c->flags & CONN_TLS && c->log_len < RECORD_LOG_MAX && c->log_merged < MERGED_MOST;
}

/* "HTTP/1.", little endian, of 8 bytes whose last is the minor version */
static __always_inline bool is_http1(u64 start)
{
	return (start & 0x00ffffffffffffffULL) == 0x002e312f50545448ULL;
}

/* An answer 100 to 199 but for 101: the one that counts is still to come (RFC 9110 section 15.2). */
static __always_inline bool is_interim(struct conn_event *c)
{
	return c->rx_head_len > 11 && is_http1(*(u64 *)c->rx_head) && c->rx_head[9] == '1' &&
	       !(c->rx_head[10] == '0' && c->rx_head[11] == '1');
}

static __always_inline void note_answer_head(struct __sk_buff *skb, struct tcp_part *part,
					     struct conn_event *c, u64 now)
{
	u64 start;

	if (c->rx_head_len < HEAD_SHORT) {
		if (!c->rx_head_len || c->last_dir == DIR_RX)
			copy_head(skb, part->offset, part->len, c->rx_head, &c->rx_head_len);
		return;
	}
	if (!is_interim(c) || part->len < sizeof(start) ||
	    bpf_skb_load_bytes(skb, part->offset, &start, sizeof(start)) || !is_http1(start))
		return;
	c->rx_head_len = 0;
	c->first_resp_ns = now;
	copy_head(skb, part->offset, part->len, c->rx_head, &c->rx_head_len);
}

/*
 * SSH: both sides send their version at once, neither as an answer to the
 * other (RFC 4253 section 4.2). What the client says next is its first request.
 */
static __always_inline bool is_ssh_greeting(struct conn_event *c)
{
	return c->first_rx_ns == c->first_resp_ns && c->last_dir == DIR_TX && !c->turn_count &&
	       *(u32 *)c->rx_head == SSH_ && *(u32 *)c->tx_head == SSH_;
}

/*
 * n (1 to 4) more bytes of a record header of which *partial (0 to 4) are
 * there. The verifier is to bound what it reads, not what it was made from.
 */
static __always_inline void load_split(struct __sk_buff *skb, u32 offset, u8 *split, u8 *partial,
				       u32 n)
{
	u32 have = *partial;
	u32 less_one;

	*partial = have + n;
	less_one = *(volatile u8 *)partial - have - 1;
	BOUND(less_one, 3);
	BOUND(have, 7);
	bpf_skb_load_bytes(skb, offset, split + have, less_one + 1);
}

/*
 * Note each record that starts in this packet. Follows the record lengths
 * from the ClientHello on, so that payload is never mistaken for a header; a
 * header split over two packets is put together.
 *
 * The verifier goes through every turn of the loop in each state that differs
 * from those it knows, and compares the ranges of whatever bounds a length
 * further on. So where a record begins is kept in the entry alone, and read
 * anew in each turn: what is read from there has no range.
 */
static __always_inline void walk_records(struct __sk_buff *skb, struct tcp_part *part,
					 struct conn_event *c, bool rx, u64 now)
{
	volatile u32 *record = rx ? &c->rx_record : &c->tx_record;
	u8 *partial = rx ? &c->rx_partial : &c->tx_partial;
	u8 *split = rx ? c->rx_split : c->tx_split;
	u32 hello_at = 0;
	bool hello = 0, first = 1;

	for (int i = 0; i < RECORDS_WALKED; i++) {
		/* only the first can have begun in an earlier packet */
		u32 have = i ? 0 : *partial;
		u32 offset = *record - part->seq;
		bool whole = !have;
		u8 h[8] = {};

		if ((s32)offset < 0 || have >= RECORD_HEADER) {
			c->flags |= rx ? CONN_RX_GAP : CONN_TX_GAP;
			c->log_len = RECORD_LOG_MAX;
			return;
		}
		if (offset >= part->len)
			break;
		/* have header bytes came before; offset is where the next one is */
		if (offset + RECORD_HEADER - have > part->len) {
			u32 n = part->len - offset; /* 1 to 4, and have + n is under 5 */

			load_split(skb, part->offset + offset, split, partial, n);
			*record += n;
			break;
		}
		if (have) {
			u32 n = RECORD_HEADER - have;

			load_split(skb, part->offset + offset, split, partial, n);
			h[0] = split[0];
			h[3] = split[3];
			h[4] = split[4];
			*partial = 0;
			offset += n;
		} else {
			if (bpf_skb_load_bytes(skb, part->offset + offset, h, RECORD_HEADER))
				break;
			offset += RECORD_HEADER;
		}
		u32 len = (u32)h[3] << 8 | h[4];
		u8 body[2] = {};

		log_record(c, h[0], len, first, rx, now);
		first = 0;
		if (h[0] == RECORD_ALERT || (rx && h[0] == RECORD_HANDSHAKE))
			bpf_skb_load_bytes(skb, part->offset + offset, body, sizeof(body));
		if (h[0] == RECORD_ALERT) {
			u8 alert = len == 2 ? body[1] + 1 : 255;

			if (rx && !c->alert_rx)
				c->alert_rx = alert;
			else if (!rx && !c->alert_tx)
				c->alert_tx = alert;
		}
		if (rx && h[0] == RECORD_HANDSHAKE && body[0] == SERVER_HELLO && whole &&
		    c->hello_rx_seen < 2 && !c->hello_rx_left) {
			c->hello_rx_seen++;
			c->hello_rx_left = len + RECORD_HEADER > SERVER_HELLO_MAX
						   ? SERVER_HELLO_MAX
						   : len + RECORD_HEADER;
			hello = 1;
			hello_at = offset - RECORD_HEADER;
		}
		*record = part->seq + offset + len;
	}
	if (hello) {
		u32 n = part->len - hello_at;

		if (n > c->hello_rx_left)
			n = c->hello_rx_left;
		submit_hello(skb, c, part->seq + hello_at, part->offset + hello_at, n, 1, now);
		c->hello_rx_left -= n;
	}
}

/* The rest of a hello whose first part was in an earlier packet. */
static __always_inline void continue_hello(struct __sk_buff *skb, struct tcp_part *part,
					   struct conn_event *c, bool rx, u64 now)
{
	u32 left = rx ? c->hello_rx_left : c->hello_tx_left;
	u32 n = part->len;

	if (n > left)
		n = left;
	submit_hello(skb, c, part->seq, part->offset, n, rx, now);
	if (rx)
		c->hello_rx_left = left - n;
	else
		c->hello_tx_left = left - n;
}

static __always_inline int on_packet(struct __sk_buff *skb, bool rx)
{
	u64 sk = (u64)skb->sk;
	struct tcp_part part = {};
	struct conn_event *c;
	bool logged;
	u64 now;
	u32 next;

	if (!sk)
		return 1;
	c = conn_by_sk.lookup(&sk);
	if (!c) {
		u64 plain; /* the verifier lets nobody compute with a typed pointer */

		read_kernel(&plain, sizeof(plain), &sk);
		if (READ_FIELD(u16, plain, OFF_sock_sk_protocol) == IPPROTO_UDP)
			on_udp(skb, plain, rx);
		return 1;
	}
	if (c->flags & CONN_UDP) {
		on_flow(skb, c, rx);
		return 1;
	}
	if (!parse_packet(skb, &part))
		return 1;
	if (part.flags & TCP_FLAG_RST)
		c->flags |= rx ? CONN_RX_RST : CONN_TX_RST;
	if (part.flags & TCP_FLAG_FIN)
		c->flags |= rx ? CONN_RX_FIN : CONN_TX_FIN;
	if (part.flags & TCP_FLAG_SYN) {
		part.seq++;
		c->flags |= CONN_PACKETS;
		if (!c->cookie)
			c->cookie = bpf_get_socket_cookie(skb);
		if (rx)
			c->rx_next = part.seq;
		else
			c->tx_next = part.seq;
	}
	if (!part.len)
		return 1;
#ifdef INBOUND
	/* from here on as its client sees it: tx is the side that asks */
	if (c->flags & CONN_INBOUND) {
		if (!rx)
			read_server_task(c); /* the first answer leaves in the server's own call */
		rx = !rx;
	}
#endif
	next = rx ? c->rx_next : c->tx_next;
	if ((s32)(part.seq + part.len - next) <= 0)
		return 1; /* sent before */
	if (part.seq != next && (s32)(part.seq - next) > 0)
		c->flags |= rx ? CONN_RX_GAP : CONN_TX_GAP;
	if (c->rport == DNS_PORT && c->turn_count < DNS_TURNS)
		submit_dns(skb, c->sk, part.seq, part.offset, part.len,
			   DNS_STREAM | (rx ? DNS_RECEIVED : 0));
	now = bpf_ktime_get_ns();
	if (rx) {
		c->rx_next = part.seq + part.len;
		if (!c->first_rx_ns)
			c->first_rx_ns = now;
		if (!c->first_resp_ns && c->first_tx_ns)
			c->first_resp_ns = now;
		note_answer_head(skb, &part, c, now);
		if (is_ssh_greeting(c)) {
			c->first_tx_ns = 0;
			c->first_resp_ns = 0;
			c->last_dir = DIR_RX;
			return 1;
		}
		/* user space counts the turns of what it is handed */
		logged = c->flags & CONN_H2 && c->hello_rx_left && c->hello_tx_left;
		if (c->hello_rx_left)
			continue_hello(skb, &part, c, 1, now);
		if (is_logging(c)) {
			logged = 1;
			walk_records(skb, &part, c, 1, now);
		}
		if (c->last_dir == DIR_TX)
			count_turn(c, logged, now);
		c->last_dir = DIR_RX;
		return 1;
	}
	c->tx_next = part.seq + part.len;
	if (c->flags & CONN_RX_FIN && part.len > GOODBYE_MOST)
		c->flags |= CONN_TX_LATE;
	if (!c->first_tx_ns)
		c->first_tx_ns = now;
	if (c->tx_head_len < HEAD_SHORT && (!c->tx_head_len || c->last_dir == DIR_TX)) {
		u32 before = c->tx_head_len;

		copy_head(skb, part.offset, part.len, c->tx_head, &c->tx_head_len);
		detect_http2(c);
		detect_http1(skb, &part, c, before);
	} else if (c->flags & CONN_HTTP) {
		if (c->last_dir != DIR_TX)
			c->hello_tx_left = 0; /* another request */
		else if (!c->first_resp_ns)
			continue_http1(skb, &part, c);
	}
	if (!(c->flags & CONN_TLS) && c->turn_count < LATE_TLS_TURNS) {
		if (c->last_dir != DIR_TX)
			c->tx_record = part.seq; /* until TLS begins: where the turn did */
		if (part.seq - c->tx_record <= LATE_TLS_BYTES)
			detect_tls(skb, &part, c, now);
	}
	if (c->hello_tx_left)
		continue_hello(skb, &part, c, 0, now);
	if (is_logging(c))
		walk_records(skb, &part, c, 0, now);
	if (c->last_dir != DIR_TX)
		c->turn_start_ns = now;
	c->last_dir = DIR_TX;
	return 1;
}

int packet_egress(struct __sk_buff *skb)
{
	return on_packet(skb, 0);
}

int packet_ingress(struct __sk_buff *skb)
{
	return on_packet(skb, 1);
}
