/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Processes forked, programs started and ended. The executable's path is read here because a
 * process that lives 5 ms is gone before user space could look.
 */
#include "event.h"
#include "kernel_fields.h"
#include "maps.h"

#define PATH_MASK  (PATH_LONG - 1)
#define PATH_DEPTH 64 /* components and mount points crossed */

/*
 * Write the path of a struct path, last component first, towards the front.
 * What is in no folder (memfd_create()) has its name alone.
 */
static __always_inline void copy_path(struct exec_long_event *e, char *path)
{
	char *dentry = READ_PTR(path, OFF_path_dentry);
	char *mount = READ_PTR(path, OFF_path_mnt) - OFF_mount_mnt;
	u32 at = PATH_LONG;

	e->path_cut = 1;
	for (int i = 0; i < PATH_DEPTH; i++) {
		char *parent = READ_PTR(dentry, OFF_dentry_d_parent);
		char *root = READ_PTR(mount, OFF_mount_mnt + OFF_vfsmount_mnt_root);
		u32 len;

		if (dentry == root) {
			char *above = READ_PTR(mount, OFF_mount_mnt_parent);

			if (above == mount) {
				e->path_cut = 0;
				break;
			}
			dentry = READ_PTR(mount, OFF_mount_mnt_mountpoint);
			mount = above;
			continue;
		}
		len = READ_FIELD(u32, dentry, OFF_dentry_d_name + OFF_qstr_len);
		if (dentry == parent && len <= 1) { /* a file system's root, out of reach */
			e->path_cut = 0;
			break;
		}
		if (len == 0 || len >= COMPONENT_LEN || at < len + 1)
			break;
		at -= len + 1;
		if (at >= PATH_LONG)
			break;
		BOUND(at, PATH_MASK);
		BOUND(len, COMPONENT_LEN - 1);
		e->path[at] = '/';
		read_kernel(e->path + at + 1, len,
			    READ_PTR(dentry, OFF_dentry_d_name + OFF_qstr_name));
		if (dentry == parent) {
			e->path_cut = 0;
			break;
		}
		dentry = parent;
	}
	e->path_start = at;
}

static __always_inline void submit_long_path(struct exec_long_event *e)
{
	u32 size = __builtin_offsetof(struct exec_long_event, slack);
	struct ring_share *held = share_with_room(size, SHARE_PROCESS, PROCESS_MOST);

	e->header.kind = EVENT_EXEC;
	e->header.size = size;
	e->ts_ns = bpf_ktime_get_ns();
	__builtin_memset(&e->task, 0, sizeof(e->task));
	read_task(&e->task);
	e->task.netns = read_task_netns();
	if (!held || (events.ringbuf_output(e, size, BPF_RB_NO_WAKEUP) &&
		      events.ringbuf_output(e, size, BPF_RB_NO_WAKEUP))) {
		count(COUNT_LOST_EXEC);
		return;
	}
	__sync_fetch_and_add(&held->produced, size);
}

/* What the parent has looked up the child may connect by. */
int process_fork(struct bpf_raw_tracepoint_args *ctx)
{
	char *parent = (char *)ctx->args[0], *child = (char *)ctx->args[1];
	char *leader = READ_PTR(parent, OFF_task_struct_group_leader);
	struct fork_event *e;

	if (READ_PTR(child, OFF_task_struct_group_leader) != child)
		return 0; /* a thread */
	e = reserve(sizeof(*e), SHARE_PROCESS, PROCESS_MOST, COUNT_LOST_EXEC);
	if (!e)
		return 0;
	e->header.kind = EVENT_FORK;
	e->header.size = sizeof(*e);
	e->ts_ns = bpf_ktime_get_ns();
	e->start_ns = READ_FIELD(u64, child, OFF_task_struct_start_boottime);
	e->parent_start_ns = READ_FIELD(u64, leader, OFF_task_struct_start_boottime);
	e->pid = READ_FIELD(u32, child, OFF_task_struct_tgid);
	e->parent = READ_FIELD(u32, parent, OFF_task_struct_tgid);
	events.ringbuf_submit(e, share_wakeup(sizeof(*e), SHARE_PROCESS, PROCESS_MOST));
	return 0;
}

int process_exec(struct bpf_raw_tracepoint_args *ctx)
{
	char *file = read_exe_file((char *)ctx->args[0]);
	int zero = 0;
	struct exec_long_event *built = exec_being_told.lookup(&zero);
	struct exec_event *e;

	if (!built)
		return 0;
	built->path_start = PATH_LONG;
	built->path_cut = 0;
	if (file)
		copy_path(built, file + OFF_file_f_path);
	if (built->path_start < PATH_LONG - PATH_LEN) {
		submit_long_path(built);
		return 0;
	}
	e = reserve(sizeof(*e), SHARE_PROCESS, PROCESS_MOST, COUNT_LOST_EXEC);
	if (!e)
		return 0;
	__builtin_memset(&e->task, 0, sizeof(e->task));
	read_task(&e->task);
	e->task.netns = read_task_netns();
	e->header.kind = EVENT_EXEC;
	e->header.size = sizeof(*e);
	e->ts_ns = bpf_ktime_get_ns();
	e->path_start = built->path_start - (PATH_LONG - PATH_LEN);
	e->path_cut = built->path_cut;
	read_kernel(e->path, PATH_LEN, built->path + PATH_LONG - PATH_LEN);
	events.ringbuf_submit(e, share_wakeup(sizeof(*e), SHARE_PROCESS, PROCESS_MOST));
	return 0;
}

/*
 * Runs for every thread, so it is also what empties the maps keyed by thread
 * when one is killed inside a call.
 */
int process_exit(struct bpf_raw_tracepoint_args *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct lookup_call *call;
	struct exit_event *e;
	char *task;

	call = lookup_by_thread.lookup(&thread);
	if (call)
		give_up_lookup(thread, call, 0);
	handshake_by_thread.delete(&thread);
	if ((u32)thread != thread >> 32)
		return 0;
	e = reserve(sizeof(*e), SHARE_PROCESS, PROCESS_MOST, COUNT_LOST_EXIT);
	if (!e)
		return 0;
	task = (char *)ctx->args[0];
	e->header.kind = EVENT_EXIT;
	e->header.size = sizeof(*e);
	e->ts_ns = bpf_ktime_get_ns();
	e->start_ns = READ_FIELD(u64, task, OFF_task_struct_start_boottime);
	e->pid = thread >> 32;
	e->pad = 0;
	events.ringbuf_submit(e, share_wakeup(sizeof(*e), SHARE_PROCESS, PROCESS_MOST));
	return 0;
}
