/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* LINUX_VERSION_CODE comes from uname at start, as a -D constant. */
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + ((c) > 255 ? 255 : (c)))
