/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Readers of kernel fields. The offsets (OFF_struct_field) are not compiled
 * in: monitor/kernel/btf.py reads them from the running kernel's BTF and
 * hands them over as -D constants, so no kernel header is involved.
 */
#ifndef CONMOND_KERNEL_FIELDS_H
#define CONMOND_KERNEL_FIELDS_H

#include <uapi/linux/ptrace.h>

#include "event.h"

#define AF_INET     2
#define AF_INET6    10
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define SOCK_STREAM 1

#define ENOENT        2
#define E2BIG         7
#define EAFNOSUPPORT  97
#define EADDRNOTAVAIL 99
#define ENETUNREACH   101
#define ECONNREFUSED  111

#define SS_UNCONNECTED     1 /* struct socket's state */
#define RCV_SHUTDOWN       1 /* sk_shutdown */
#define SO_EE_ORIGIN_ICMP  2
#define SO_EE_ORIGIN_ICMP6 3

#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT    2
#define TCP_SYN_RECV    3
#define TCP_FIN_WAIT1   4
#define TCP_CLOSE       7
#define TCP_CLOSE_WAIT  8
#define TCP_LAST_ACK    9
#define TCP_CLOSING     11

/*
 * Helpers by number (uapi/linux/bpf.h). Called by name, BCC looks for them in
 * /proc/kallsyms, and where that is hidden, as from a sandboxed service, it
 * makes bpf_probe_read() of them, which packet programs may not call.
 */
static long (*const read_user)(void *to, __u32 size, const void *from) = (void *)112;
static long (*const read_kernel)(void *to, __u32 size, const void *from) = (void *)113;
static long (*const read_user_str)(void *to, __u32 size, const void *from) = (void *)114;

/* One scalar field of a kernel object; 0 if the object cannot be read. */
#define READ_FIELD(type, base, offset)                                                             \
	({                                                                                         \
		type value_ = 0;                                                                   \
		read_kernel(&value_, sizeof(value_), (char *)(base) + (offset));                   \
		value_;                                                                            \
	})

/*
 * Bound a value where the verifier looks: the compiler may otherwise test one
 * copy and use another. mask is a constant, a power of two less one.
 */
#define BOUND(value, mask) asm volatile("%0 &= %1" : "+r"(value) : "i"(mask))

/* Hide from the compiler where a value comes from. */
#define SHROUD(value) asm volatile("" : "+r"(value))

#define READ_PTR(base, offset) READ_FIELD(char *, base, offset)

static __always_inline __u16 swap16(__u16 v)
{
	return __builtin_bswap16(v);
}

static __always_inline char *read_exe_file(char *task)
{
	char *mm = READ_PTR(task, OFF_task_struct_mm);

	return mm ? READ_PTR(mm, OFF_mm_struct_exe_file) : 0;
}

/* As bpf_get_current_cgroup_id(), which packet programs may not call before 6.2 (5.10, 6.1 tried). */
static __always_inline __u64 read_cgroup_id(char *task)
{
	char *set = READ_PTR(task, OFF_task_struct_cgroups);
	char *cgroup = READ_PTR(set, OFF_css_set_dfl_cgrp);
	char *node = READ_PTR(cgroup, OFF_cgroup_kn);

	return READ_FIELD(__u64, node, OFF_kernfs_node_id);
}

/*
 * The calling task. Only meaningful in that task's own context, never in
 * softirq. netns is left to the caller, who may have a socket to ask.
 */
static __always_inline void read_task(struct task_info *info)
{
	char *task = (char *)bpf_get_current_task();
	char *leader = READ_PTR(task, OFF_task_struct_group_leader);
	char *parent = READ_PTR(task, OFF_task_struct_real_parent);
	char *cred = READ_PTR(task, OFF_task_struct_cred);
	char *file = read_exe_file(task);

	info->pid = READ_FIELD(__u32, task, OFF_task_struct_tgid);
	info->tid = READ_FIELD(__u32, task, OFF_task_struct_pid);
	info->ppid = READ_FIELD(__u32, parent, OFF_task_struct_tgid);
	info->start_ns = READ_FIELD(__u64, leader, OFF_task_struct_start_boottime);
	info->uid = READ_FIELD(__u32, cred, OFF_cred_uid);
	info->cgroup_id = read_cgroup_id(task);
	/* the process's name: threads have names of their own ("isc-net-0000") */
	read_kernel(info->comm, sizeof(info->comm), leader + OFF_task_struct_comm);
	if (file) {
		char *inode = READ_PTR(file, OFF_file_f_inode);
		char *super = READ_PTR(inode, OFF_inode_i_sb);

		info->exe_ino = READ_FIELD(unsigned long, inode, OFF_inode_i_ino);
		info->exe_dev = READ_FIELD(__u32, super, OFF_super_block_s_dev);
	}
}

static __always_inline __u32 read_task_netns(void)
{
	char *task = (char *)bpf_get_current_task();
	char *proxy = READ_PTR(task, OFF_task_struct_nsproxy);
	char *net = READ_PTR(proxy, OFF_nsproxy_net_ns);

	return READ_FIELD(__u32, net, OFF_net_ns_inum);
}

/* tgid in the upper half, tid in the lower; usable where the helper is not. */
static __always_inline __u64 read_task_key(void)
{
	char *task = (char *)bpf_get_current_task();

	return (__u64)READ_FIELD(__u32, task, OFF_task_struct_tgid) << 32 |
	       READ_FIELD(__u32, task, OFF_task_struct_pid);
}

/*
 * The stack pointer as it was when a function was entered: where the address
 * lies that it returns to. On x86-64 the probe may lie behind a first push
 * (monitor/kernel/returns.py says why), whose last byte is then right before it.
 */
static __always_inline __u64 entry_stack(struct pt_regs *ctx)
{
#if defined(__x86_64__)
	__u8 before = 0;

	read_user(&before, 1, (void *)(PT_REGS_IP(ctx) - 1));
	return PT_REGS_SP(ctx) + ((before & 0xf8) == 0x50 ? 8 : 0);
#else
	return PT_REGS_SP(ctx);
#endif
}

/* Addresses and ports as the socket holds them now; zero where not yet set. */
static __always_inline void read_endpoints(struct conn_event *c, __u64 sk)
{
	__u16 lport = READ_FIELD(__u16, sk, OFF_sock_common_skc_num);

	c->family = READ_FIELD(__u16, sk, OFF_sock_common_skc_family);
	c->rport = swap16(READ_FIELD(__u16, sk, OFF_sock_common_skc_dport));
	if (!lport)
		lport = swap16(READ_FIELD(__u16, sk, OFF_inet_sock_inet_sport));
	c->lport = lport;
	if (c->family == AF_INET6) {
		read_kernel(c->laddr, 16, (char *)sk + OFF_sock_common_skc_v6_rcv_saddr);
		read_kernel(c->raddr, 16, (char *)sk + OFF_sock_common_skc_v6_daddr);
	} else {
		read_kernel(c->laddr, 4, (char *)sk + OFF_sock_common_skc_rcv_saddr);
		read_kernel(c->raddr, 4, (char *)sk + OFF_sock_common_skc_daddr);
	}
}

static __always_inline __u32 read_sock_netns(__u64 sk)
{
	char *net = READ_PTR(sk, OFF_sock_common_skc_net);

	return READ_FIELD(__u32, net, OFF_net_ns_inum);
}

/* The socket's own figures, as getsockopt(TCP_INFO) would give them. */
static __always_inline void read_tcp_figures(struct conn_event *c, __u64 sk)
{
	__u64 sent = READ_FIELD(__u64, sk, OFF_tcp_sock_bytes_sent);
	__u64 again = READ_FIELD(__u64, sk, OFF_tcp_sock_bytes_retrans);
	__u64 received = READ_FIELD(__u64, sk, OFF_tcp_sock_bytes_received);

	/* The kernel counts a received FIN as one byte (tcp_rcv_nxt_update). */
	if (c->flags & CONN_RX_FIN && received)
		received--;
	c->bytes_sent = sent - again;
	c->bytes_received = received;
	c->rtt_us = READ_FIELD(__u32, sk, OFF_tcp_sock_srtt_us) >> 3;
	c->rttvar_us = READ_FIELD(__u32, sk, OFF_tcp_sock_mdev_us) >> 2;
	c->retransmits = READ_FIELD(__u32, sk, OFF_tcp_sock_total_retrans);
}

#endif
