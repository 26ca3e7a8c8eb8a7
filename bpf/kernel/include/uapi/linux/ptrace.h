/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Registers at a uprobe: the part of the ABI that BCC's PT_REGS_ macros use. */
#ifndef CONMOND_PTRACE_H
#define CONMOND_PTRACE_H

#if defined(__x86_64__)
struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8;
	unsigned long ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp, ss;
};
#elif defined(__aarch64__)
struct user_pt_regs {
	unsigned long long regs[31], sp, pc, pstate;
};
struct pt_regs {
	unsigned long long regs[31], sp, pc, pstate;
};
#endif

#endif
