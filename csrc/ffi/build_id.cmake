# Writes OUTPUT, a header that defines JS_BUILD_ID as a hash of the sources under SOURCE_DIR.
# Names and contents count, times and places do not: equal sources have equal ids everywhere.
file(GLOB_RECURSE files RELATIVE ${SOURCE_DIR} ${SOURCE_DIR}/*.c ${SOURCE_DIR}/*.h
    ${SOURCE_DIR}/*.def ${SOURCE_DIR}/CMakeLists.txt)
list(SORT files)
set(all "")
foreach(file IN LISTS files)
    file(SHA256 ${SOURCE_DIR}/${file} hash)
    string(APPEND all "${file} ${hash}\n")
endforeach()
string(SHA256 build_id "${all}")
string(SUBSTRING ${build_id} 0 32 build_id)
file(CONFIGURE OUTPUT ${OUTPUT} CONTENT "#define JS_BUILD_ID \"${build_id}\"\n" @ONLY)
