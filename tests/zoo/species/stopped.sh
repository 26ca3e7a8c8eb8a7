# Stopped and continued (job control, a debugger's attach) inside a lookup.
"$BUILT/plain" &
for _ in 1 2 3 4 5; do kill -STOP $!; sleep .004; kill -CONT $!; sleep .004; done 2>/dev/null
wait $!
echo "exit $?"
