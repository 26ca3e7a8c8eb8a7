# The first process of a process namespace is killed while the others are inside a lookup.
cat >/dev/null <<<''
setsid unshare --pid --fork --kill-child --mount-proc bash -c '"$BUILT/waiting" & "$BUILT/waiting" & sleep 5' &
sleep .04
kill -KILL $!
wait $! 2>/dev/null
echo "killed"
"$BUILT/plain"
