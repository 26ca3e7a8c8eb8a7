/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* BCC asks for this one option by name. */
#define CONFIG_BPF_SYSCALL 1
