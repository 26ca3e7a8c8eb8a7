# A container's file system: a program runs in an overlay, its library is written to (which copies it to
# the upper layer), it runs again, and all is taken down.
base=$(mktemp -d)
mount -t tmpfs zoo "$base" && cd "$base" || exit 1
mkdir lower upper work merged
mkdir -p lower/bin lower/lib64 lower/lib/x86_64-linux-gnu lower/etc
cp "$BUILT/plain" lower/bin/
cp /lib64/ld-linux-x86-64.so.2 lower/lib64/
cp /lib/x86_64-linux-gnu/libc.so.6 lower/lib/x86_64-linux-gnu/
cp /etc/resolv.conf /etc/nsswitch.conf lower/etc/
mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work zoo merged || exit 1
chroot merged /bin/plain; echo "exit $?"
printf '' >>merged/lib/x86_64-linux-gnu/libc.so.6
chroot merged /bin/plain; echo "exit $?"
cd /
for try in $(seq 20); do umount "$base/merged" 2>/dev/null && break; sleep .05; done
for try in $(seq 20); do umount "$base" 2>/dev/null && break; sleep .05; done
mountpoint -q "$base" && echo "still busy" || echo "unmounted"
umount -l "$base" 2>/dev/null
rmdir "$base"
