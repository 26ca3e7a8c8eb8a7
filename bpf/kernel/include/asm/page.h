/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* PAGE_SIZE comes from sysconf at start, as a -D constant. */
