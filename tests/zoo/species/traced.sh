# strace -f sees the same calls in the same order, and the program does the same.
out=$(mktemp)
strace -f -qq -o "$out" -e trace=socket,connect,sendto,recvmsg,exit_group,rt_sigreturn "$BUILT/inside"
echo "exit $?"
sed -E 's/^[0-9]+ +//; s/\(.*//' "$out" | grep -vE '^(---|\+\+\+)' | sort | uniq -c | grep -E 'exit_group|sigreturn'
grep -E -- '--- SIG' "$out"
rm "$out"
