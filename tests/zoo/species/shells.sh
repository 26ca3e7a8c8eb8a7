# Processes of their own user, process and mount namespace, and one under READ_IMPLIES_EXEC, look up.
unshare --user --map-root-user --pid --fork --mount "$BUILT/plain"
setarch -X "$BUILT/plain"
( ulimit -v 200000; "$BUILT/plain" )
