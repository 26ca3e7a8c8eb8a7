# A library is upgraded as dpkg does it, by a rename, while a program that uses it runs; then it is
# deleted altogether. The program must go on with the old one, new programs with the new one.
folder=$(mktemp -d -p /var/tmp)
cp "$BUILT/libbased.so" "$folder/libbased.so"
cp "$BUILT/based" "$folder/based"
LD_LIBRARY_PATH=$folder "$folder/based"
(LD_LIBRARY_PATH=$folder exec "$folder/based") >"$folder/first" & first=$!
cp "$BUILT/libbased.so" "$folder/libbased.so.dpkg-new"
mv -f "$folder/libbased.so.dpkg-new" "$folder/libbased.so"
LD_LIBRARY_PATH=$folder "$folder/based"
(LD_LIBRARY_PATH=$folder exec "$folder/based") >"$folder/second" & second=$!
sleep .01
rm "$folder/libbased.so" "$folder/based"
wait $first; echo "exit $?"
wait $second; echo "exit $?"
cat "$folder/first" "$folder/second"
rm "$folder/first" "$folder/second"
rmdir "$folder"
