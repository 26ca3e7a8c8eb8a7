# A program with a C library of its own runs in a mount, is deleted while it runs, and the mount is
# taken down when it has ended: it must not be busy, and its backing loop or memory must be free.
mount=$(mktemp -d)
mount -t tmpfs -o mode=755 zoo "$mount"
mkdir -p "$mount"/bin "$mount"/lib64 "$mount"/lib/x86_64-linux-gnu
cp "$BUILT/plain" "$mount/bin/"
cp /lib64/ld-linux-x86-64.so.2 "$mount/lib64/"
cp /lib/x86_64-linux-gnu/libc.so.6 "$mount/lib/x86_64-linux-gnu/"
mkdir "$mount/etc"; cp /etc/resolv.conf /etc/nsswitch.conf "$mount/etc/"
chroot "$mount" /bin/plain & program=$!
sleep .03
rm "$mount/lib/x86_64-linux-gnu/libc.so.6" "$mount/bin/plain"
wait $program; echo "exit $?"
# a moment, as every init script gives it
for try in $(seq 20); do umount "$mount" 2>/dev/null && break; sleep .05; done
mountpoint -q "$mount" && echo "still busy" || echo "unmounted"
umount -l "$mount" 2>/dev/null
rmdir "$mount"
