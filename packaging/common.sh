# Sourced by the scripts beside it, which run in the tree's top folder.
# shellcheck shell=bash

# The distribution's own Python, whatever stands first on PATH: only that one sees its bcc.
python=/usr/bin/python3

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() {
	say "$@"
	exit 1
}

# Prints the lines of packaging/files of these kinds: kind, mode, path, source.
# PREFIX and ZSH stand for the arguments before: list_files PREFIX ZSH KIND...
list_files() {
	local prefix=$1 zsh=$2 kind mode path source
	shift 2
	while read -r kind mode path source; do
		[[ -z $kind || $kind == \#* || " $* " != *" $kind "* ]] && continue
		path=${path/#PREFIX/$prefix}
		printf '%s %s %s %s\n' "$kind" "$mode" "${path/#ZSH/$zsh}" "$source"
	done <packaging/files
}

systemd_runs() { [[ -d /run/systemd/system ]]; }
