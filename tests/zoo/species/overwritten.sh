# A program is run, overwritten in place (cp, scp, rsync --inplace) by its next build, and run again.
folder=$(mktemp -d -p /var/tmp)
cp "$BUILT/replaced-old" "$folder/program"
"$folder/program"
"$folder/program"
cp "$BUILT/replaced-new" "$folder/program"
"$folder/program"; echo "exit $?"
cp "$BUILT/replaced-old" "$folder/program"
"$folder/program"; echo "exit $?"
rm -r "$folder"
