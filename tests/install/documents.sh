# shellcheck shell=bash
# Of the documentation that is installed with the program.

# links_of FILE: all that lead to files, without their places in a page.
links_of() {
  grep -o '](<\?[^)]*)' "$1" | sed 's/^](<\?//; s/[ #>)].*$//' | grep -v -e '^$' -e '^[a-z]*:' | sort -u
}

# has_its_pages FOLDER: README.md and everything that it leads to.
has_its_pages() {
  local page link
  for page in README CHANGELOG SECURITY CONTRIBUTING docs/install docs/upgrade docs/decisions/0001-changes-are-an-enum-reads-are-methods; do
    [[ -f $1/$page.md ]] || fail "there is no $page.md"
  done
  while IFS= read -r page; do
    for link in $(links_of "$page"); do
      [[ -e $(dirname "$page")/$link ]] || fail "$page leads to $link, which is not there"
    done
  done < <(find "$1" -name '*.md')
  [[ $(links_of "$1/README.md" | wc -l) -gt 15 ]] || fail "the links of README.md are not found"
}
