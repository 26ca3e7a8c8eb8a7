# A control group and a network namespace in which a program has just looked up and connected are
# taken down at once; then a program is frozen inside its lookup, and thawed.
root=$(mktemp -d)
mount -t cgroup2 none "$root" || exit 1
group=$root/zoo-$$
mkdir "$group" || exit 1
(echo $BASHPID >"$group/cgroup.procs"; exec "$BUILT/inside")
rmdir "$group" && echo "no group"
space=zoo-$$
ip netns add "$space" && ip -n "$space" link set lo up
ip netns exec "$space" "$BUILT/numeric"
ip netns del "$space" && echo "no namespace"
mkdir "$group" || exit 1
(echo $BASHPID >"$group/cgroup.procs"; exec "$BUILT/plain") & program=$!
sleep .01
echo 1 >"$group/cgroup.freeze"; sleep .02; echo 0 >"$group/cgroup.freeze"
wait $program; echo "exit $?"
rmdir "$group" && echo "no group"
umount "$root" && rmdir "$root"
