// What a newer C++ compiler asks of the C and C++ libraries, and older ones do not have: with this,
// a wheel that is built on a newer Linux runs on an older one (manylinux_2_28).
#include <new>
#include <sstream>

// glibc 2.32: whether there is one thread, so that counting could do without atomics. "No" is right
// always.
extern "C" __attribute__((visibility("hidden"))) char __libc_single_threaded;
char __libc_single_threaded = 0;

// libstdc++ of gcc 9 to 11
namespace std {
void __throw_bad_array_new_length() { throw bad_array_new_length(); }
}  // namespace std
template std::basic_ostringstream<char>::basic_ostringstream();
template std::basic_stringstream<char>::basic_stringstream();
template std::string std::basic_stringbuf<char>::str() const &;
template std::string std::basic_stringbuf<char>::str() &&;
