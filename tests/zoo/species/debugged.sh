# gdb: stops in getaddrinfo() and in a function that the handshake calls; who called must be told, and
# `finish` must come back to the caller.
gdb -q -nx -batch -ex 'set debuginfod enabled off' -ex 'set startup-with-shell off' \
	-ex 'set breakpoint pending on' -ex 'break getaddrinfo' -ex run -ex bt -ex finish \
	-ex 'break inside_handshake' -ex continue -ex bt -ex continue "$BUILT/inside" 2>&1 |
	sed -nE 's/^#[0-9]+ +(0x[0-9a-f]+ in )?(__GI_)?(getaddrinfo|zoo_look_up|inside_handshake|zoo_talk|main) \(.*/\3/p
		s/^(Run till exit .*)?0x[0-9a-f]+ in ([a-z_]+) \(.*/back in \2/p
		s/ 1 \(process [0-9]+\)//; /^(name|handshake|\[Inferior|Program (received|terminated))/p'
